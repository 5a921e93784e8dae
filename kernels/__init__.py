"""Kernels: Python functions over arrays that Numba compiles for CPU cores and for CUDA."""

import os
import sys

from danqing.engine.core.cache import cache_path

# By default Numba writes compiled code beside the sources and CuPy to the home folder, and either can be read-only.
# Numba reads its variable on import, CuPy when it compiles.
for _library in ("numba", "cupy"):
    os.environ.setdefault(f"{_library.upper()}_CACHE_DIR", str(cache_path() / _library))
if "numba" in sys.modules:
    sys.modules["numba"].config.reload_config()
