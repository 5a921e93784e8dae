"""Devices: where arrays live and kernels run. Only this module looks for hardware.

Code that is ours uses `device.xp` (NumPy or CuPy) and portable kernels; vendor parts (decoder, resizer, model session)
are chosen by `device.kind`. Every thread that uses a GPU has its own CUDA stream. Each stage synchronizes its stream
before it returns, so its outputs are valid on any stream and its inputs can be freed.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import numpy

from danqing.engine.core.copies import copied
from danqing.engine.core.errors import DanqingError

T = TypeVar("T")

DISALLOW_REDUCED_PRECISION_REDUCTION = 16
"""cuBLAS's CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION; CuPy does not define it."""
RELEASE_THRESHOLD_BYTES = 8 << 30
"""Freed memory that CUDA's default pool keeps for later allocations. nvImageCodec allocates pixels in this pool. By
default the pool returns all freed memory to the driver at every synchronization."""


def available_threads() -> int:
    """Returns the number of cores that this process may use, as limited by a container or `taskset`."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Device:
    """A CPU or a GPU, and the host threads that work for it.

    Attributes:
        kind: `cpu` or `cuda`.
        threads: number of host threads.
        pool: the host threads.
        xp: the array library, NumPy or CuPy.
        number: index of the GPU; 0 on a CPU.
        held: returns the bytes of GPU memory that arrays occupy now; 0 on a CPU.
    """

    kind: str
    threads: int
    pool: ThreadPoolExecutor
    xp: Any = numpy
    number: int = 0
    held: Callable[[], int] = int
    _own: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The device's name as `open_device` accepts it: `cpu` or `cuda:N`."""
        return "cpu" if self.kind == "cpu" else f"{self.kind}:{self.number}"

    @property
    def target(self) -> str:
        """The target that an engine must be compiled for to run here: `cpu`, or the GPU's architecture (`sm_90`)."""
        return "cpu" if self.kind == "cpu" else f"sm_{self.xp.cuda.Device(self.number).compute_capability}"

    @property
    def stream(self) -> int:
        """Handle of the current thread's CUDA stream; 0 on a CPU."""
        stream = getattr(self._own, "stream", None)
        return int(stream.ptr) if stream else 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Gives the current thread its own CUDA stream during a `with` block.

        Afterwards CuPy's current GPU and stream are what they were before, so a thread may open one device while
        another is open.
        """
        if self.kind == "cpu":
            yield
            return
        with self.xp.cuda.Device(self.number), self.xp.cuda.Stream(non_blocking=True) as stream:
            self._own.stream = stream
            try:
                yield
            finally:
                del self._own.stream

    def wait(self) -> None:
        """Synchronizes the current thread's stream."""
        if self.stream:
            self._own.stream.synchronize()

    def sum_in_float32(self) -> None:
        """Makes cuBLAS accumulate half-precision products of the current thread in float32."""
        if self.kind == "cuda":
            cublas = self.xp.cuda.cublas
            cublas.setMathMode(self.xp.cuda.device.get_cublas_handle(), DISALLOW_REDUCED_PRECISION_REDUCTION)

    def up(self, array: Any) -> Any:
        """Returns the array in the device's memory; counts the bytes if it is copied from the host.

        Args:
            array: an array of the host or the device, or a sequence of numbers.
        """
        if self.kind == "cpu":
            return numpy.asarray(array)
        if not hasattr(array, "__cuda_array_interface__"):
            array = numpy.asarray(array)
            self.count_copied(array.nbytes)
        return self.xp.asarray(array)

    def up_or_pinned(self, array: numpy.ndarray) -> Any:
        """Returns the array in memory that kernels can address.

        This is the device's memory as long as a quarter of it stays free, then page-locked host memory, which a GPU
        reads over PCIe. On a CPU it is the array itself.
        """
        if self.kind == "cpu":
            return array
        free, total = self.xp.cuda.runtime.memGetInfo()
        if array.nbytes <= free - total // 4:
            return self.up(array)
        import cupyx

        pinned = cupyx.empty_pinned(array.shape, array.dtype)
        pinned[:] = array
        return pinned

    def down(self, array: Any) -> numpy.ndarray:
        """Returns the array in the host's memory; counts the bytes if it is copied from the device."""
        if not hasattr(array, "__cuda_array_interface__"):
            return numpy.asarray(array)
        copied.down += array.nbytes
        found: numpy.ndarray = array.get()
        return found

    def count_copied(self, size: int) -> None:
        """Counts `size` bytes that a vendor part copies to the device."""
        copied.up += size

    def map(self, function: Callable[..., T], items: Iterable[Any]) -> list[T]:
        """Calls `function` on every item with all host threads; returns the results in order.

        Faster than a loop only if `function` releases the interpreter's lock.
        """
        return list(self.pool.map(function, items))


@contextmanager
def open_device(name: str = "cpu", threads: int | None = None) -> Iterator[Device]:
    """Opens a device during a `with` block, and gives the current thread a stream on it.

    Args:
        name: `cpu`, `cuda` (GPU 0), `cuda:N`, or `auto` (`cuda` if CUDA finds a GPU, else `cpu`).
        threads: number of host threads; None: `available_threads()`.

    Raises:
        DanqingError: the name is not valid, there is no such GPU, or CuPy is not installed.

    >>> with open_device("cpu", threads=2) as device:
    ...     device.map(abs, [-1, 2])
    [1, 2]
    """
    name = resolve_device(name)
    kind, _, which = name.partition(":")
    number = int(which or 0)
    xp, held = (numpy, int) if kind == "cpu" else (_open_gpu(name, number), _open_memory(number))
    threads = threads or available_threads()
    with ThreadPoolExecutor(threads, thread_name_prefix="danqing") as pool:
        device = Device(kind, threads, pool, xp, number, held)
        with device.entered():
            yield device


def resolve_device(name: str) -> str:
    """Returns a device's name; that of `auto` is `cuda:0` if CUDA finds a GPU, else `cpu`.

    Raises:
        DanqingError: the name is not one of a device.
    """
    if name != "auto":
        if not re.fullmatch("cpu|cuda(:[0-9]{1,3})?", name):
            raise DanqingError(f"--device {name}: must be cpu, cuda, cuda:0, cuda:1, … or auto")
        return name
    return "cuda:0" if _counted_gpus() else "cpu"


def kind_of(name: str) -> str:
    """Returns the kind of device, `cpu` or `cuda`, that `open_device` opens for a name."""
    return resolve_device(name).partition(":")[0]


def _open_gpu(name: str, number: int) -> Any:
    """Imports CuPy and checks that it can use the GPU."""
    try:
        import cupy
    except ImportError as problem:
        raise DanqingError(f"--device {name}: {problem}; pip install 'danqing-engine[cuda]'") from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as problem:  # no driver, or one that is too old; CuPy's message says which
        raise DanqingError(f"--device {name}: no GPU that CUDA can use: {problem}; see nvidia-smi") from None
    if number >= count:
        available = ", ".join(f"cuda:{n}" for n in range(count)) or "none"
        raise DanqingError(f"--device {name}: no such GPU; available: {available}")
    return cupy


@cache
def _open_memory(number: int) -> Callable[[], int]:
    """Makes CuPy and RMM (and so cuDF and cuML) allocate from one stream-ordered pool of GPU memory.

    Called once per process and GPU, because the kernels' lookup tables stay in the pool.

    Returns:
        A function that returns the bytes in use.
    """
    import cupy

    runtime = cupy.cuda.runtime
    runtime.memPoolSetAttribute(
        runtime.deviceGetDefaultMemPool(number), runtime.cudaMemPoolAttrReleaseThreshold, RELEASE_THRESHOLD_BYTES
    )
    try:
        import rmm
        from rmm.allocators.cupy import rmm_cupy_allocator
    except ImportError:  # without RMM, only CuPy allocates
        return lambda: int(cupy.get_default_memory_pool().used_bytes())
    with cupy.cuda.Device(number):
        pool = rmm.mr.StatisticsResourceAdaptor(rmm.mr.CudaAsyncMemoryResource())
        rmm.mr.set_current_device_resource(pool)
    cupy.cuda.set_allocator(rmm_cupy_allocator)
    return lambda: int(pool.allocation_counts.current_bytes)


def _counted_gpus() -> int:
    try:
        import cupy

        return int(cupy.cuda.runtime.getDeviceCount())
    except Exception:  # no CuPy, no driver or no GPU
        return 0
