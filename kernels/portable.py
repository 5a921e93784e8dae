"""Kernels written once: plain Python over arrays, compiled by Numba for CPU cores and for CUDA.

A kernel is a function over rows::

    @kernel
    def double(first, last, step, values, out):
        for row in range(first, last, step):
            out[row] = twice(values[row])

    double.launch(device, rows, values, out)

On a CPU each thread takes runs of rows (step 1); on CUDA thread t of n takes rows t, t + n, t + 2 n … What kernels
call is a plain function marked `@inlined`. Arguments are numbers, arrays and named tuples of arrays; scratch memory
is an argument, too, since a GPU thread cannot allocate. `first` is another one in every thread, and can number it.

Where a row is work for many GPU threads at once, it gets a block of them, and a second loop (`Kernel.on_cuda`).
"""

from __future__ import annotations

import ctypes
import inspect
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import cache, cached_property
from types import FunctionType
from typing import Any, Protocol, TypeVar

import numpy as np
from llvmlite import ir
from numba import extending, njit, types

from danqing.kernels.compiled import cached

F = TypeVar("F", bound=Callable[..., Any])

BLOCK, SMALL_BLOCK = 128, 32
"""Threads of a CUDA block: rows are ragged, so small blocks that end early."""
ROWS_FOR_BLOCKS = 1 << 17
"""Least number of rows for blocks of `BLOCK` threads, not `SMALL_BLOCK`. A multiprocessor of compute capability 8.0 or
9.0 holds 32 blocks: an A100's 108 hold 110,592 rows in small blocks, an H100's 132 hold 135,168. With fewer rows,
large blocks leave multiprocessors idle: 512 captions are 4 blocks of 128."""
LANES = 256
"""Threads of a CUDA block that shares a row."""
RUN = 64
"""Fewest rows worth handing to a thread, unless a kernel says otherwise."""

_preparing = threading.RLock()
"""Held while a kernel is prepared for CUDA, so that threads that launch it at the same time compile it once."""


class Launcher(Protocol):
    """What a kernel asks of the device it is launched on."""

    @property
    def kind(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> list[Any]: ...


class ArrayLauncher(Launcher, Protocol):
    """What also makes arrays, where the device has its memory: `numpy` or `cupy`."""

    @property
    def xp(self) -> Any: ...

    @property
    def number(self) -> int: ...

    def up(self, array: Any) -> Any: ...

    def down(self, array: Any) -> np.ndarray: ...

    def wait(self) -> None: ...


_inlined: list[Callable[..., Any]] = []


def inlined(function: F) -> F:
    """Marks a function that kernels may call, on either device. It stays callable from Python."""
    _inlined.append(function)
    marked: F = extending.register_jitable(_nrt=False)(function)
    return marked


def inlined_sum(function: F) -> F:
    """`inlined`, for loops that add up floating-point numbers: CPU cores may do so in several lanes at once."""
    _inlined.append(function)
    marked: F = extending.register_jitable(_nrt=False, fastmath={"reassoc", "contract"})(function)
    return marked


def byte_at(address, offset):
    """The byte `offset` behind a memory address (int64): how kernels reach arrays that have only their address."""
    return ctypes.c_uint8.from_address(int(address) + int(offset)).value


def half_at(address, index):
    """The float16 number `index` of those at a memory address, as float32."""
    return np.float32(np.uint16(ctypes.c_uint16.from_address(int(address) + 2 * int(index)).value).view(np.float16))


def compare_and_swap(array, index, old, new):
    """Puts `new` (int64) where `old` is, at once for all threads; returns what was there."""
    found = array[index]
    if found == old:
        array[index] = new
    return found


def prefetch(address, offset):
    """Asks a CPU core for the cache line of that byte; harmless where there is no such memory."""


@cache
def _teach(toolkit: Any, space: int) -> None:
    """Tells a compiler (Numba's `extending` or `cuda.extending`) what these are, in its address space for data."""

    def lower_byte(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(builder, arguments, space))

    def lower_half(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, index = arguments
        halves = builder.inttoptr(address, ir.HalfType().as_pointer(space))
        return builder.fpext(builder.load(builder.gep(halves, [index]), align=2), ir.FloatType())

    def lower_swap(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, old, new = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        number, *rest = (builder.sext(v, ir.IntType(64)) if v.type.width < 64 else v for v in (index, old, new))
        place = builder.gep(data, [number])
        return builder.extract_value(builder.cmpxchg(place, *rest, "monotonic", "monotonic"), 0)

    toolkit.type_callable(byte_at)(lambda context: lambda address, offset: types.uint8)
    toolkit.lower_builtin(byte_at, types.Integer, types.Integer)(lower_byte)
    toolkit.type_callable(half_at)(lambda context: lambda address, index: types.float32)
    toolkit.lower_builtin(half_at, types.Integer, types.Integer)(lower_half)
    toolkit.type_callable(compare_and_swap)(lambda context: lambda array, index, old, new: types.int64)
    toolkit.lower_builtin(compare_and_swap, types.Array, types.Integer, types.Integer, types.Integer)(lower_swap)


@extending.type_callable(prefetch)
def _type_prefetch(context):
    return lambda address, offset: types.void


@extending.lower_builtin(prefetch, types.Integer, types.Integer)
def _lower_prefetch(context, builder, signature, arguments):
    pointer, number = _pointer(builder, arguments), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
    to_read, into_first_cache, data = number(0), number(3), number(1)
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
    builder.call(function, [pointer, to_read, into_first_cache, data])
    return context.get_dummy_value()


def _pointer(builder: Any, arguments: Any, space: int = 0) -> Any:
    address, offset = arguments
    return builder.gep(builder.inttoptr(address, ir.IntType(8).as_pointer(space)), [offset])


_teach(extending, 0)


class Kernel:
    """A function over rows, compiled when first launched, for the device it is launched on.

    Args:
        run: fewest rows worth handing to a CPU thread.
    """

    def __init__(self, body: Callable[..., None], run: int = RUN) -> None:
        self.body, self.name, self.run = body, body.__name__, run
        self.block_body: Callable[..., None] | None = None
        self._on_cuda: Any = None
        self.__doc__ = body.__doc__
        # Kernels work on memory they are lent, so nothing counts references (_nrt): that alone makes them faster.
        self._on_cpu = cached(njit, nogil=True, _nrt=False)(body)

    def on_cuda(self, body: Callable[..., None]) -> Callable[..., None]:
        """Makes `body(*arguments)` this kernel's CUDA side: `LANES` threads work on each row, cuda.blockIdx.x.

        It is written as Numba's own CUDA kernels are; the name `cuda` is given to it when it is compiled.
        """
        self.block_body = body
        return body

    def launch(self, device: Launcher, rows: int, *arguments: Any) -> None:
        """Runs over rows 0 … rows - 1. On CUDA it is queued on the device's stream and not waited for.

        Args:
            arguments: arrays of the device; outputs and scratch among them.
        """
        if rows == 0:
            return
        if device.kind == "cuda":
            from numba import cuda

            handle = getattr(device, "stream", 0)
            stream = cuda.external_stream(handle) if handle else 0
            if self.block_body:
                self.on_gpu[rows, LANES, stream](*arguments)
            else:
                block = BLOCK if rows >= ROWS_FOR_BLOCKS else SMALL_BLOCK
                self.on_gpu[-(-rows // block), block, stream](rows, *arguments)
            return
        size = max(self.run, -(-rows // (4 * device.threads)))  # four runs a thread, for rows differ in length
        if device.threads == 1 or rows <= size:
            self._on_cpu(0, rows, 1, *arguments)
        else:
            spans = [(start, min(start + size, rows)) for start in range(0, rows, size)]
            device.map(lambda span: self._on_cpu(*span, 1, *arguments), spans)

    def ptx(self, capability: tuple[int, int], *arguments: Any) -> str:
        """The kernel's PTX for arguments of these types; needs no driver and no GPU."""
        from numba import cuda, int64, typeof

        kinds = tuple(typeof(argument) for argument in arguments)
        with _pretended(capability):
            text, _ = cuda.compile_ptx(self._threaded, kinds if self.block_body else (int64, *kinds), cc=capability)
        return text

    @property
    def on_gpu(self) -> Any:
        """Numba's dispatcher for CUDA. Its compiled code is cached on disk, as that for CPU cores."""
        with _preparing:
            if self._on_cuda is None:
                from numba import cuda

                self._on_cuda = cached(cuda.jit)(self._threaded)
        return self._on_cuda

    @cached_property
    def _threaded(self) -> Callable[..., None]:
        """What one CUDA thread does."""
        from numba import cuda
        from numba.cuda.extending import register_jitable

        with _preparing:
            _prepare_cuda()
        if self.block_body:
            bound = FunctionType(self.block_body.__code__, self.block_body.__globals__ | {"cuda": cuda})
            bound.__qualname__ = self.name
            return bound
        # Calls the body with this thread's rows. Made from text, since Numba needs the parameters by name. The file and
        # line are those of the body: Numba needs them to cache the code and for its error messages.
        names = ", ".join(list(inspect.signature(self.body).parameters)[3:])
        text = f"def {self.name}(rows, {names}):\n    body(cuda.grid(1), rows, cuda.gridsize(1), {names})\n"
        code = self.body.__code__
        scope: dict[str, Any] = {"body": register_jitable(self.body), "cuda": cuda}
        exec(compile("\n" * (code.co_firstlineno - 1) + text, code.co_filename, "exec"), scope)
        return scope[self.name]


def _prepare_cuda() -> None:
    """Tells Numba's CUDA compiler of all that kernels call."""
    from numba import config
    from numba.cuda import extending as toolkit

    if not hasattr(np, "row_stack"):  # removed in NumPy 2.5; numba-cuda (0.30.4) compiles nothing without it
        np.row_stack = np.vstack
    config.CUDA_ARRAY_INTERFACE_SYNC = (
        0  # a thread's arrays and launches share one stream, so are in order unwaited for
    )
    config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # the last rows of a run are few
    _teach(toolkit, 1)
    while _inlined:  # only now: importing numba.cuda takes half a second, and most machines have no use for it
        toolkit.register_jitable(_inlined.pop())


def kernel(body: Callable[..., None]) -> Kernel:
    """Makes `body(first, last, step, *arguments)` a kernel."""
    return Kernel(body)


def heavy_kernel(body: Callable[..., None]) -> Kernel:
    """A kernel whose every row is worth a thread."""
    return Kernel(body, run=1)


_kept = threading.local()
_resident: dict[tuple[int, int], tuple[Any, Any]] = {}
_residing = threading.Lock()


def resident(device: ArrayLauncher, tables: Any) -> Any:
    """An array, or a named tuple of them, that kernels look things up in: in the device's memory, copied there once."""
    if device.kind == "cpu":
        return tables
    key = device.number, id(tables)
    with _residing:
        if key not in _resident:
            there = device.up(tables) if isinstance(tables, np.ndarray) else type(tables)(*map(device.up, tables))
            device.wait()  # launches of other threads do not wait for this thread's stream
            _resident[key] = tables, there  # the tables are held, too, so no others take their id
        return _resident[key][1]


def workspace(device: ArrayLauncher, name: str, size: int, kind: Any) -> Any:
    """Scratch memory of at least `size` entries, on a CPU the same for this name and thread from launch to launch.

    Fresh pages from the system cost more than the kernels that would use them; CuPy's pool keeps a GPU's by itself.
    """
    if device.kind == "cuda":
        return device.xp.empty(size, kind)
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
