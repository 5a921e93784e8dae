"""Compiles one Python function over arrays for CPU cores and for CUDA, with Numba.

A kernel is a function over rows::

    @kernel
    def double(first, last, step, values, out):
        for row in range(first, last, step):
            out[row] = twice(values[row])

    double.launch(device, rows, values, out)

On a CPU each thread runs ranges of rows (step 1); on CUDA thread t of n runs rows t, t + n, t + 2 n … `first` is unique
per running thread; use it as the thread index. Kernels call functions marked `@inlined`. Arguments are numbers, arrays
and named tuples of arrays. Scratch memory is an argument, since a GPU thread cannot allocate.

A kernel whose rows are large has a second function for CUDA, which runs a block of threads per row (`Kernel.on_cuda`).
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

BLOCK_THREADS = 128
"""Threads of a CUDA block of a launch over many rows. Small, since a block ends with the longest of its rows."""
SMALL_BLOCK_THREADS = 32
"""Threads of a CUDA block of a launch over few rows."""
MIN_ROWS_FOR_LARGE_BLOCKS = 1 << 17
"""Minimum number of rows for blocks of `BLOCK_THREADS`. A multiprocessor of compute capability 8.0 or 9.0 holds 32
blocks: an A100's 108 hold 110,592 rows in small blocks, an H100's 132 hold 135,168. With fewer rows, large blocks leave
multiprocessors idle: 512 captions are 4 blocks of 128."""
THREADS_PER_ROW = 256
"""Threads of a CUDA block that works on one row."""
MIN_ROWS_PER_TASK = 64
"""Default minimum number of rows of a CPU thread's task."""

_cuda_lock = threading.RLock()
"""Held while a kernel is prepared for CUDA, so that threads that launch it at the same time compile it once."""


class Launcher(Protocol):
    """The device that a kernel is launched on.

    Attributes:
        kind: `cpu` or `cuda`.
        threads: number of CPU threads of `map`.
    """

    @property
    def kind(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> list[Any]: ...


class ArrayLauncher(Launcher, Protocol):
    """A device with memory.

    Attributes:
        xp: the library of the device's arrays, `numpy` or `cupy`.
        number: index of the GPU.
        up, down: copy an array to the device and to the host, if it is not there.
        wait: returns when all work on the calling thread's stream is done.
    """

    @property
    def xp(self) -> Any: ...

    @property
    def number(self) -> int: ...

    def up(self, array: Any) -> Any: ...

    def down(self, array: Any) -> np.ndarray: ...

    def wait(self) -> None: ...


_inlined: list[Callable[..., Any]] = []


def inlined(function: F) -> F:
    """Marks a function that kernels can call on either device. It stays callable from Python."""
    _inlined.append(function)
    marked: F = extending.register_jitable(_nrt=False)(function)
    return marked


def inlined_sum(function: F) -> F:
    """Marks a function like `inlined`, whose floating-point sums may be reordered, so that its loops are vectorised."""
    _inlined.append(function)
    marked: F = extending.register_jitable(_nrt=False, fastmath={"reassoc", "contract"})(function)
    return marked


def array_interface(array: Any) -> dict[str, Any]:
    """Returns the array interface of a NumPy or CuPy array: a dict with `shape`, `strides`, `data` and others."""
    found: dict[str, Any] = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return found


def address_of(array: Any) -> int:
    """Returns the address of the first byte of an array of the host or a device."""
    return int(array_interface(array)["data"][0])


def byte_at(address, offset):
    """Returns the uint8 at a memory address (int64) plus `offset`."""
    return ctypes.c_uint8.from_address(int(address) + int(offset)).value


def half_at(address, index):
    """Returns element `index` of the float16 array at a memory address (int64), as float32."""
    return np.float32(np.uint16(ctypes.c_uint16.from_address(int(address) + 2 * int(index)).value).view(np.float16))


def compare_and_swap(array, index, old, new):
    """Replaces array[index] by `new` if it equals `old`, atomically; returns the value before. All are int64."""
    found = array[index]
    if found == old:
        array[index] = new
    return found


def prefetch(address, offset):
    """Loads the cache line at a memory address (int64) plus `offset` on a CPU. Any address is valid."""


@cache
def _register_intrinsics(toolkit: Any, space: int) -> None:
    """Defines `byte_at`, `half_at` and `compare_and_swap` for a compiler, as LLVM instructions.

    Numba has no public function for a load from an address or for an atomic swap on a CPU.

    Args:
        toolkit: `numba.extending` or `numba.cuda.extending`.
        space: LLVM's address space of data, 0 on a CPU, 1 (global memory) on CUDA.
    """

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
    to_read, into_first_cache, data = number(0), number(3), number(1)  # see llvm.prefetch in LLVM's language reference
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
    builder.call(function, [pointer, to_read, into_first_cache, data])
    return context.get_dummy_value()


def _pointer(builder: Any, arguments: Any, space: int = 0) -> Any:
    address, offset = arguments
    return builder.gep(builder.inttoptr(address, ir.IntType(8).as_pointer(space)), [offset])


_register_intrinsics(extending, 0)


class Kernel:
    """A function over rows, compiled at its first launch on each kind of device.

    Args:
        body: `body(first, last, step, *arguments)`. No argument is named `rows`, which `_threaded` adds.
        min_rows: minimum number of rows of a CPU thread's task.
    """

    def __init__(self, body: Callable[..., None], min_rows: int = MIN_ROWS_PER_TASK) -> None:
        self.body, self.name, self.min_rows = body, body.__name__, min_rows
        self.block_body: Callable[..., None] | None = None
        self._on_cuda: Any = None
        self.__doc__ = body.__doc__
        # Without Numba's runtime (_nrt, a private option), arrays have no reference counts, which makes kernels faster;
        # they neither allocate nor keep arrays.
        self._on_cpu = cached(njit, nogil=True, _nrt=False)(body)

    def on_cuda(self, body: Callable[..., None]) -> Callable[..., None]:
        """Makes `body(*arguments)` this kernel's function on CUDA: `THREADS_PER_ROW` threads run row cuda.blockIdx.x.

        `body` is a Numba CUDA kernel. The name `cuda` is bound when it is compiled: importing numba.cuda takes half a
        second, which a machine without a GPU saves.

        Returns:
            `body`, unchanged.
        """
        self.block_body = body
        return body

    def launch(self, device: Launcher, rows: int, *arguments: Any) -> None:
        """Runs the kernel on rows 0 … rows - 1. On CUDA it returns when the launch is queued on the device's stream.

        Args:
            device: runs the kernel.
            rows: number of rows.
            arguments: numbers, and arrays of the device, outputs and scratch included.
        """
        if rows == 0:
            return
        if device.kind == "cuda":
            from numba import cuda

            handle = getattr(device, "stream", 0)
            stream = cuda.external_stream(handle) if handle else 0
            if self.block_body:
                self.on_gpu[rows, THREADS_PER_ROW, stream](*arguments)
            else:
                block = BLOCK_THREADS if rows >= MIN_ROWS_FOR_LARGE_BLOCKS else SMALL_BLOCK_THREADS
                self.on_gpu[-(-rows // block), block, stream](rows, *arguments)
            return
        # Four tasks per thread, since rows differ in length.
        size = max(self.min_rows, -(-rows // (4 * device.threads)))
        if device.threads == 1 or rows <= size:
            self._on_cpu(0, rows, 1, *arguments)
        else:
            spans = [(start, min(start + size, rows)) for start in range(0, rows, size)]
            device.map(lambda span: self._on_cpu(*span, 1, *arguments), spans)

    def ptx(self, capability: tuple[int, int], *arguments: Any) -> str:
        """Compiles the kernel for CUDA without a driver or a GPU.

        Args:
            capability: compute capability, such as (9, 0).
            arguments: examples of the arguments, for their types.

        Returns:
            PTX assembly.
        """
        from numba import cuda, int64, typeof

        kinds = tuple(typeof(argument) for argument in arguments)
        with _assumed_capability(capability):
            text, _ = cuda.compile_ptx(self._threaded, kinds if self.block_body else (int64, *kinds), cc=capability)
        return text

    @property
    def on_gpu(self) -> Any:
        """Numba's dispatcher for CUDA. Its compiled code is cached on disk, like that for CPU cores."""
        with _cuda_lock:
            if self._on_cuda is None:
                from numba import cuda

                self._on_cuda = cached(cuda.jit)(self._threaded)
        return self._on_cuda

    @cached_property
    def _threaded(self) -> Callable[..., None]:
        """The function of one CUDA thread."""
        from numba import cuda
        from numba.cuda.extending import register_jitable

        with _cuda_lock:
            _prepare_cuda()
        if self.block_body:
            # A copy of the function whose globals contain `cuda`.
            bound = FunctionType(self.block_body.__code__, self.block_body.__globals__ | {"cuda": cuda})
            bound.__qualname__ = self.name
            return bound
        # Calls the body with this thread's rows. Made by `exec`, since Numba does not compile `*arguments`. Has the
        # file and the line of the body: Numba needs them to cache the code and for its error messages.
        names = ", ".join(list(inspect.signature(self.body).parameters)[3:])
        text = f"def {self.name}(rows, {names}):\n    body(cuda.grid(1), rows, cuda.gridsize(1), {names})\n"
        code = self.body.__code__
        scope: dict[str, Any] = {"body": register_jitable(self.body), "cuda": cuda}
        exec(compile("\n" * (code.co_firstlineno - 1) + text, code.co_filename, "exec"), scope)
        return scope[self.name]


def _prepare_cuda() -> None:
    """Sets up Numba's CUDA compiler and registers the functions that kernels call."""
    from numba import config
    from numba.cuda import extending as toolkit

    if not hasattr(np, "row_stack"):  # removed in NumPy 2.5; numba-cuda (0.30.4) compiles nothing without it
        np.row_stack = np.vstack
    # A thread's arrays and launches share one stream, which orders them without a wait.
    config.CUDA_ARRAY_INTERFACE_SYNC = 0
    config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # the last batch of a shard has few rows
    _register_intrinsics(toolkit, 1)
    while _inlined:
        toolkit.register_jitable(_inlined.pop())


def kernel(body: Callable[..., None]) -> Kernel:
    """Makes a kernel of `body(first, last, step, *arguments)`, see `Kernel`."""
    return Kernel(body)


def heavy_kernel(body: Callable[..., None]) -> Kernel:
    """Makes a kernel whose single rows are large enough for a CPU thread's task."""
    return Kernel(body, min_rows=1)


_workspaces = threading.local()
_resident: dict[tuple[int, int], tuple[Any, Any]] = {}
_resident_lock = threading.Lock()


def resident(device: ArrayLauncher, tables: Any) -> Any:
    """Copies a look-up table to the device once, and keeps it there.

    Args:
        device: the device.
        tables: a NumPy array or a named tuple of them. The same object gives the same copy.

    Returns:
        `tables` on a CPU, else the copy.
    """
    if device.kind == "cpu":
        return tables
    key = device.number, id(tables)
    with _resident_lock:
        if key not in _resident:
            copy = device.up(tables) if isinstance(tables, np.ndarray) else type(tables)(*map(device.up, tables))
            device.wait()  # launches of other threads do not wait for this thread's stream
            _resident[key] = tables, copy  # holds `tables`, so that no other object gets its id
        return _resident[key][1]


def workspace(device: ArrayLauncher, name: str, size: int, kind: Any) -> Any:
    """Returns scratch memory with arbitrary content.

    On a CPU, later calls with the same name on the same thread return the same memory: new pages of the system cost
    more than the kernels that use them. On a GPU, CuPy's memory pool has the same effect.

    Args:
        device: the device that uses the memory.
        name: distinguishes arrays that are in use at the same time.
        size: minimum number of elements.
        kind: NumPy type of the elements.

    Returns:
        One-dimensional array of at least `size` elements, on the device.
    """
    if device.kind == "cuda":
        return device.xp.empty(size, kind)
    arrays = _workspaces.__dict__
    if name not in arrays or arrays[name].size < size:
        arrays[name] = np.empty(max(size, 1 << int(size).bit_length()), kind)
    return arrays[name]


@contextmanager
def _assumed_capability(capability: tuple[int, int]) -> Any:
    """Makes Numba compile for a compute capability without a GPU.

    `compile_ptx` takes the capability of the kernel, but asks the current GPU for that of the functions it calls.
    """
    from numba.cuda import dispatcher

    ask = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: type("Device", (), {"compute_capability": capability})()
    try:
        yield
    finally:
        dispatcher.get_current_device = ask
