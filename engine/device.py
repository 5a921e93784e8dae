"""The one place that knows what hardware there is.

Our own code is written against `device.xp` (arrays) and kernels; vendors' parts (decoder,
resizer, model session) ask the device how to open. This version opens CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy

from engine.errors import DanqingError
from profiling.copies import copied

T = TypeVar("T")


def available_threads() -> int:
    """Cores this process may use (containers and `taskset` included)."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Device:
    """Where arrays live and how many host threads may work on them.

    `stream`: the CUDA stream that work is queued on, as its handle; 0 on a CPU.
    """

    kind: str
    threads: int
    pool: ThreadPoolExecutor
    xp: Any = numpy
    stream: int = 0

    @property
    def target(self) -> str:
        """What engines are compiled for to run here: `cpu`, or the GPU's architecture (`sm_90`)."""
        return "cpu" if self.kind == "cpu" else f"sm_{self.xp.cuda.Device().compute_capability}"

    def up(self, array: Any) -> Any:
        """The array in the device's memory; what is copied there from the host is counted."""
        if self.kind == "cpu":
            return numpy.asarray(array)
        if not hasattr(array, "__cuda_array_interface__"):
            array = numpy.asarray(array)
            self.sent(array.nbytes)
        return self.xp.asarray(array)

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

    def held(self) -> int:
        """Bytes of the device's own memory that arrays take at present."""
        return 0 if self.kind == "cpu" else int(self.xp.get_default_memory_pool().used_bytes())

    def map(self, function: Callable[..., T], items: Iterable[Any]) -> list[T]:
        """`function` over `items`, in order, on all threads; worth it for functions that release the GIL."""
        return list(self.pool.map(function, items))


@contextmanager
def open_device(kind: str = "cpu", threads: int | None = None) -> Iterator[Device]:
    """Opens a device for the length of a `with` block.

    Raises:
        DanqingError: for a device this version cannot open.
    """
    if kind != "cpu":
        raise DanqingError(f"--device {kind}: this version runs on 'cpu'")
    threads = threads or available_threads()
    with ThreadPoolExecutor(threads, thread_name_prefix="danqing") as pool:
        yield Device(kind, threads, pool)
