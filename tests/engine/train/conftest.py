"""Mends torchvision in this process before transformers is imported, as the tests of exported models need it whole."""

from __future__ import annotations

from danqing.profiling.bench.published import mend_torchvision

mend_torchvision()
