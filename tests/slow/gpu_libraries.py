"""Loads the libraries that a run on a GPU loads, without a GPU: each must come from the image's packages.

A file named libcuda.so.1, without any function, stands in for the driver's library, which NVIDIA's container runtime
mounts. image.sh runs this script in the image.
"""

import ctypes
import importlib
import site
from pathlib import Path

import onnxruntime

PACKAGES = Path(site.getsitepackages()[0])

for name in (
    "cudf",
    "cuml",
    "cupy",
    "faiss",
    "numba.cuda",
    "nvidia.dali",
    "nvidia.nvimgcodec",
    "nvtx",
    "pynvml",
    "rmm",
):
    importlib.import_module(name)
assert hasattr(importlib.import_module("faiss"), "GpuIndexFlatIP")
ctypes.CDLL(str(next(PACKAGES.rglob("libnvjpeg.so.13"))))

onnxruntime.preload_dlls()
provider = PACKAGES / "onnxruntime" / "capi"
ctypes.CDLL(str(provider / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
try:
    ctypes.CDLL(str(provider / "libonnxruntime_providers_cuda.so"))
except OSError as problem:
    # Functions are looked up after every library has been found.
    if "undefined symbol: cu" not in str(problem):
        raise
maps = Path("/proc/self/maps").read_text()
for library in ("libcublasLt.so.13", "libcudart.so.13", "libcudnn.so.9", "libcurand.so.10"):
    found = {line.split()[-1] for line in maps.splitlines() if line.endswith(library)}
    assert found and all(path.startswith(str(PACKAGES)) for path in found), (library, found)
    print(library, *sorted(str(Path(path).parent.relative_to(PACKAGES)) for path in found))
