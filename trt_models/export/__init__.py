"""Exporters: from published weights to ONNX. Each is found by the `build` name of a model card."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


BUILDERS: dict[str, Callable[[], onnx.ModelProto]] = {}
