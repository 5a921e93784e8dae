"""Our own kernels: plain array functions that Numba compiles, for CPU cores and for CUDA."""

import os
import sys

from engine.files import cache_path

# By default Numba keeps compiled code beside the sources, CuPy in the home folder; either may be read-only. Numba reads
# its variable when it is imported, CuPy when it compiles.
for _library in ("numba", "cupy"):
    os.environ.setdefault(f"{_library.upper()}_CACHE_DIR", str(cache_path() / _library))
if "numba" in sys.modules:
    sys.modules["numba"].config.reload_config()
