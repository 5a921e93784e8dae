"""Kernels written once: plain Python over arrays, compiled by Numba for CPU cores and for CUDA.

A kernel is a function over rows::

    @kernel
    def double(first, last, step, values, out):
        for row in range(first, last, step):
            out[row] = twice(values[row])

    double.launch(device, rows, values, out)

On a CPU each thread takes runs of rows (step 1); on CUDA thread t of n takes rows t, t + n, t + 2 n … What kernels
call is a plain function marked `@inlined`. Arguments are numbers, arrays and named tuples of arrays; scratch memory
is an argument, too, since a GPU thread cannot allocate.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numba import extending, njit

F = TypeVar("F", bound=Callable[..., Any])

BLOCK = 128
"""Threads of a CUDA block: rows are ragged, so small blocks that end early."""
RUN = 64
"""Fewest rows worth handing to a thread."""


class Launcher(Protocol):
    """What a kernel asks of the device it is launched on."""

    @property
    def kind(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> list[Any]: ...


_inlined: list[Callable[..., Any]] = []


def inlined(function: F) -> F:
    """Marks a function that kernels may call, on either device. It stays callable from Python."""
    _inlined.append(function)
    marked: F = extending.register_jitable(_nrt=False)(function)
    return marked


class Kernel:
    """A function over rows, compiled when first launched, for the device it is launched on."""

    def __init__(self, body: Callable[..., None]) -> None:
        self.body, self.name = body, body.__name__
        self.__doc__ = body.__doc__
        # Kernels work on memory they are lent, so nothing counts references (_nrt): that alone makes them faster.
        self._on_cpu = njit(nogil=True, cache=True, _nrt=False)(body)  # type: ignore[call-overload]
        # Numba would recompile when the kernel's own file changes; what it calls stands in others of this package.
        kept = getattr(self._on_cpu._cache, "_cache_file", None)
        if kept is not None:
            kept._source_stamp = _sources()

    def launch(self, device: Launcher, rows: int, *arguments: Any) -> None:
        """Runs over rows 0 … rows - 1. On CUDA it is queued on the device's stream and not waited for.

        Args:
            arguments: arrays of the device; outputs and scratch among them.
        """
        if device.kind == "cuda":
            stream = getattr(device, "stream", 0)
            self._on_cuda[max(1, -(-rows // BLOCK)), BLOCK, stream](rows, *arguments)
            return
        size = max(RUN, -(-rows // (4 * device.threads)))  # four runs a thread, for rows differ in length
        if device.threads == 1 or rows <= size:
            self._on_cpu(0, rows, 1, *arguments)
        else:
            spans = [(start, min(start + size, rows)) for start in range(0, rows, size)]
            device.map(lambda span: self._on_cpu(*span, 1, *arguments), spans)

    def ptx(self, capability: tuple[int, int], *arguments: Any) -> str:
        """The kernel's PTX for arguments of these types; needs no driver and no GPU."""
        from numba import cuda, int64, typeof

        types = tuple(typeof(argument) for argument in arguments)
        with _pretended(capability):
            text, _ = cuda.compile_ptx(self._threaded, (int64, *types), cc=capability)
        return text

    @cached_property
    def _on_cuda(self) -> Any:
        from numba import cuda

        return cuda.jit(self._threaded)

    @cached_property
    def _threaded(self) -> Callable[..., None]:
        """The body with the rows of one CUDA thread. Numba wants the parameters by name, hence made from text."""
        from numba import cuda
        from numba.cuda.extending import register_jitable

        while _inlined:  # only now: importing numba.cuda takes half a second, and most machines have no use for it
            register_jitable(_inlined.pop())
        names = ", ".join(list(inspect.signature(self.body).parameters)[3:])
        text = f"def {self.name}(rows, {names}):\n    body(cuda.grid(1), rows, cuda.gridsize(1), {names})\n"
        scope: dict[str, Any] = {"body": register_jitable(self.body), "cuda": cuda}
        exec(text, scope)
        return scope[self.name]


@cache
def _sources() -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of every file of this package."""
    states = ((path.name, path.stat()) for path in sorted(Path(__file__).parent.glob("*.py")))
    return tuple((name, state.st_mtime_ns, state.st_size) for name, state in states)


def kernel(body: Callable[..., None]) -> Kernel:
    """Makes `body(first, last, step, *arguments)` a kernel."""
    return Kernel(body)


_kept = threading.local()


def workspace(name: str, size: int, kind: Any) -> np.ndarray:
    """Scratch memory of at least `size` entries, the same for this name and thread from launch to launch.

    Fresh pages from the system cost more than the kernels that would use them.
    """
    arrays = _kept.__dict__
    if name not in arrays or arrays[name].size < size:
        arrays[name] = np.empty(max(size, 1 << int(size).bit_length()), kind)
    return arrays[name]


@contextmanager
def _pretended(capability: tuple[int, int]) -> Any:
    """Numba asks the current GPU what to compile called functions for; where there is none, this answers."""
    from numba.cuda import dispatcher

    ask = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: type("Device", (), {"compute_capability": capability})()
    try:
        yield
    finally:
        dispatcher.get_current_device = ask
