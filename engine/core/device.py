"""The one place that knows what hardware there is.

Our own code is written against `device.xp` (arrays) and kernels; vendors' parts (decoder, resizer, model session) ask
the device how to open. Every thread that works on a GPU has a stream of its own there, and a stage is over when its
work is done: so what the next thread is handed can be used on any stream, and what is let go is read by none.
"""

from __future__ import annotations

import os
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
"""cuBLAS's math mode of that name, which CuPy has no name for."""
KEPT_BYTES = 8 << 30
"""Freed memory that CUDA's default pool, where nvImageCodec allocates pictures, keeps for the next pictures. By default
the pool returns all of it to the driver at every synchronization."""


def available_threads() -> int:
    """Cores this process may use (containers and `taskset` included)."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Device:
    """Where arrays live and how many host threads may work on them.

    `kind`: `cpu` or `cuda`. `xp`: NumPy or CuPy. `number`: which of the GPUs. `held`: says how many bytes of the
    device's own memory arrays take at present.
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
        """The name that `open_device` takes: `cpu` or `cuda:N`."""
        return "cpu" if self.kind == "cpu" else f"{self.kind}:{self.number}"

    @property
    def target(self) -> str:
        """What engines are compiled for to run here: `cpu`, or the GPU's architecture (`sm_90`)."""
        return "cpu" if self.kind == "cpu" else f"sm_{self.xp.cuda.Device(self.number).compute_capability}"

    @property
    def stream(self) -> int:
        """The CUDA stream that this thread's work is queued on, as its handle; 0 on a CPU."""
        stream = getattr(self._own, "stream", None)
        return int(stream.ptr) if stream else 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Gives this thread a stream of its own within a `with` block. Afterwards CuPy's GPU and stream are those of
        before: a thread may open a device while another one is open."""
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
        """Until everything that this thread has queued is done."""
        if self.stream:
            self._own.stream.synchronize()

    def sum_in_float32(self) -> None:
        """Matrix products in half precision that this thread makes keep their sums in 32 bits until they are whole."""
        if self.kind == "cuda":
            cublas = self.xp.cuda.cublas
            cublas.setMathMode(self.xp.cuda.device.get_cublas_handle(), DISALLOW_REDUCED_PRECISION_REDUCTION)

    def up(self, array: Any) -> Any:
        """The array in the device's memory; what is copied there from the host is counted."""
        if self.kind == "cpu":
            return numpy.asarray(array)
        if not hasattr(array, "__cuda_array_interface__"):
            array = numpy.asarray(array)
            self.sent(array.nbytes)
        return self.xp.asarray(array)

    def within_reach(self, array: numpy.ndarray) -> Any:
        """The array where kernels can read it by its address: in the device's memory while more than a quarter of that
        is free, beyond that in page-locked memory of the host, read over the bus."""
        if self.kind == "cpu":
            return array
        free, whole = self.xp.cuda.runtime.memGetInfo()
        if array.nbytes <= free - whole // 4:
            return self.up(array)
        import cupyx

        there = cupyx.empty_pinned(array.shape, array.dtype)
        there[:] = array
        return there

    def down(self, array: Any) -> numpy.ndarray:
        """The array in the host's memory; what is copied there from the device is counted."""
        if not hasattr(array, "__cuda_array_interface__"):
            return numpy.asarray(array)
        copied.down += array.nbytes
        found: numpy.ndarray = array.get()
        return found

    def sent(self, size: int) -> None:
        """Counts bytes that a vendor's part copies to the device by itself."""
        copied.up += size

    def map(self, function: Callable[..., T], items: Iterable[Any]) -> list[T]:
        """`function` over `items`, in order, on all host threads; worth it for functions that release the GIL."""
        return list(self.pool.map(function, items))


@contextmanager
def open_device(name: str = "cpu", threads: int | None = None) -> Iterator[Device]:
    """Opens a device for the length of a `with` block.

    Args:
        name: `cpu`, `cuda`, `cuda:N`, or `auto`: the first GPU if there is one.

    Raises:
        DanqingError: a device that there is not; says what is missing.
    """
    if name == "auto":
        name = kind_of(name)
    kind, _, which = name.partition(":")
    if kind not in ("cpu", "cuda") or (which and (kind == "cpu" or not which.isdecimal())):
        raise DanqingError(f"--device {name}: neither cpu, nor cuda, cuda:0, cuda:1, …, nor auto")
    number = int(which or 0)
    xp, held = (numpy, int) if kind == "cpu" else (_open_gpu(name, number), _open_memory(number))
    threads = threads or available_threads()
    with ThreadPoolExecutor(threads, thread_name_prefix="danqing") as pool:
        device = Device(kind, threads, pool, xp, number, held)
        with device.entered():
            yield device


def kind_of(name: str) -> str:
    """The kind of device, `cpu` or `cuda`, that `open_device` opens for a name."""
    if name == "auto":
        return "cuda" if _counted_gpus() else "cpu"
    return name.partition(":")[0]


def _open_gpu(name: str, number: int) -> Any:
    """CuPy, if it can use that GPU."""
    try:
        import cupy
    except ImportError as problem:
        raise DanqingError(f"--device {name}: {problem}; pip install 'danqing-engine[cuda]'") from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as problem:  # no driver, or one that is too old, in CuPy's words
        raise DanqingError(f"--device {name}: no GPU that CUDA can use: {problem}; see nvidia-smi") from None
    if number >= count:
        there = ", ".join(f"cuda:{n}" for n in range(count)) or "none"
        raise DanqingError(f"--device {name}: there is no such GPU; of those there are: {there}")
    return cupy


@cache
def _open_memory(number: int) -> Callable[[], int]:
    """Makes CuPy and RMM (and so cuDF and cuML) share one pool of the GPU's memory, in which what a stream lets go is
    used again only when that stream has come so far; returns what tells the bytes in use.

    Once a process, since what kernels look things up in stays in the pool.
    """
    import cupy

    runtime = cupy.cuda.runtime
    runtime.memPoolSetAttribute(
        runtime.deviceGetDefaultMemPool(number), runtime.cudaMemPoolAttrReleaseThreshold, KEPT_BYTES
    )
    try:
        import rmm
        from rmm.allocators.cupy import rmm_cupy_allocator
    except ImportError:  # then there is nobody to share with
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
    except Exception:  # no CuPy, no driver, no GPU: then there is none to use
        return 0
