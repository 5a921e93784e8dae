"""Sessions: models that are ready to run, on any number of rows."""

from __future__ import annotations

import ctypes
import importlib
import io
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import onnxruntime

from danqing.engine.core.errors import DanqingError

if TYPE_CHECKING:
    from danqing.engine.core.device import Device

CPU_BATCH_ROWS = 8
"""Rows of a batch on a CPU core. Fixed (batches are padded), so that a row's output does not depend on other rows."""
GPU_BATCH_ROWS = 64
"""Rows of a batch on a GPU, fixed likewise."""
TEXT_BATCHES = 16
"""Batches per core, or on a GPU, that are collected of texts: they are divided among three to seven widths."""
LONG_CAPTION_TOKENS = 128
MAX_CUDA_GRAPHS = 8
"""Maximum number of CUDA graphs per session, one per shape. Texts of up to 512 tokens have 7 widths."""
CUDA_PROVIDER = "CUDAExecutionProvider"


class Session(Protocol):
    """A model that is ready to run.

    Attributes:
        batch: rows of every batch that the network runs; shorter batches are padded.
    """

    batch: int

    def run(self, **inputs: Any) -> dict[str, Any]:
        """Runs the model.

        Args:
            inputs: by name, (rows, …) each; on a GPU, host arrays are copied to the device.

        Returns:
            The outputs by name, (rows, …) each, on the device.
        """
        ...


class OnnxSession:
    """ONNX Runtime on a CPU: one single-threaded call per core. Threads within a call would wait after every layer.

    Args:
        path: the ONNX file.
        device: its threads run the batches.
        batch: rows of every batch; shorter ones are padded.
    """

    def __init__(self, path: Path, device: Device, batch: int = CPU_BATCH_ROWS) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.batch, self._device = batch, device
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def warm_up(self) -> None:
        """Runs a batch of zeros per core, so that ONNX Runtime allocates its memory."""
        self.run(**self.zeros(self.batch * self._device.threads))

    def zeros(self, rows: int) -> dict[str, np.ndarray]:
        """Makes inputs of zeros by name, (rows, …) each, with `LONG_CAPTION_TOKENS` for a free dimension."""
        return {
            tensor.name: np.zeros(
                (rows, *(side if isinstance(side, int) else LONG_CAPTION_TOKENS for side in tensor.shape[1:])),
                numpy_type(tensor.type),
            )
            for tensor in self._session.get_inputs()
        }

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        rows = len(next(iter(inputs.values())))

        def run_from(at: int) -> list[np.ndarray]:
            some = {name: pad_rows(np, array[at : at + self.batch], self.batch) for name, array in inputs.items()}
            found: list[np.ndarray] = self._session.run(self._outputs, some)
            return found

        parts = self._device.map(run_from, range(0, rows, self.batch))
        return {
            name: np.concatenate([part[position] for part in parts])[:rows]
            for position, name in enumerate(self._outputs)
        }


def pad_rows(xp: Any, array: Any, batch: int) -> Any:
    """Pads an array to `batch` rows with copies of its first row.

    Kernels may sum in another order for other shapes, so without padding a row's output would depend on their number.

    Args:
        xp: NumPy or CuPy, as the array.
        array: (rows, …), 1 ≤ rows ≤ batch.
        batch: rows of the result.

    Returns:
        (batch, …), the array itself if it has that many rows.
    """
    missing = batch - len(array)
    return xp.concatenate([array, xp.repeat(array[:1], missing, axis=0)]) if missing else array


def numpy_type(name: str) -> np.dtype:
    """Converts ONNX Runtime's name of a tensor type, such as `tensor(float16)`, to NumPy's type."""
    kind = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))


def rows_at_once(device: Device, session: Session) -> int:
    """Returns how many rows a stage collects before it runs a network.

    On a GPU the session's batch, on a CPU one batch per core: more rows would only delay the next stage.
    """
    return session.batch if device.kind == "cuda" else min(GPU_BATCH_ROWS, CPU_BATCH_ROWS * device.threads)


def texts_at_once(device: Device, session: Session) -> int:
    """Returns how many texts a stage collects, so that most batches of each width are full (`trt_models.run.texts`)."""
    return TEXT_BATCHES * (session.batch if device.kind == "cuda" else CPU_BATCH_ROWS * device.threads)


class CudaOnnxSession:
    """ONNX Runtime on a GPU, on a stream of its own; inputs and outputs stay in the GPU's memory.

    Args:
        path: the ONNX file.
        device: the GPU.
        batch: rows of every batch; short ones are padded.
        tf32: round the operands of float32 products to TF32 (10 bits). The parity reference must not.

    Raises:
        DanqingError: this ONNX Runtime has no CUDA provider, or a library that the provider needs is missing.
    """

    def __init__(self, path: Path, device: Device, batch: int = GPU_BATCH_ROWS, tf32: bool = False) -> None:
        if CUDA_PROVIDER not in onnxruntime.get_available_providers():
            raise DanqingError(
                f"{path.name}: the installed onnxruntime runs on CPUs only; "
                "pip uninstall onnxruntime, then pip install onnxruntime-gpu, or compile an engine of TensorRT"
            )
        preload_libraries()
        options = {
            "device_id": str(device.number),
            # The default, EXHAUSTIVE, times all algorithms for every new shape, so its choice can differ between runs.
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",  # the default rounds up to powers of two
            "use_tf32": str(int(tf32)),
        }
        self._session = onnxruntime.InferenceSession(str(path), providers=[(CUDA_PROVIDER, options)])
        if self._session.get_providers()[0] != CUDA_PROVIDER:  # ONNX Runtime falls back to the CPU without an exception
            raise DanqingError(
                f"{path.name}: onnxruntime-gpu cannot use the GPU: {missing_library()}; "
                "pip install 'danqing-engine[cuda]' brings CUDA's libraries and cuDNN"
            )
        self._outputs = {
            output.name: (output.shape[1:], numpy_type(output.type)) for output in self._session.get_outputs()
        }
        self._device, self.batch = device, batch

    def run(self, **inputs: Any) -> dict[str, Any]:
        xp, batch = self._device.xp, self.batch
        rows = len(next(iter(inputs.values())))
        arrays = {name: self._device.up(array) for name, array in inputs.items()}
        parts = [
            {name: xp.ascontiguousarray(pad_rows(xp, array[at : at + batch], batch)) for name, array in arrays.items()}
            for at in range(0, rows, batch)
        ]
        outputs = {name: xp.empty((len(parts) * batch, *rest), kind) for name, (rest, kind) in self._outputs.items()}
        self._device.wait()  # the inputs were made on another stream
        for number, part in enumerate(parts):
            start = number * batch
            self._run_batch(part, {name: array[start : start + batch] for name, array in outputs.items()})
        return {name: array[:rows] for name, array in outputs.items()}

    def _run_batch(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Runs one batch into the outputs; returns when they are complete."""
        binding, number = self._session.io_binding(), self._device.number
        for name, array in inputs.items():
            binding.bind_input(name, "cuda", number, array.dtype, array.shape, array.data.ptr)
        for name, array in outputs.items():
            binding.bind_output(name, "cuda", number, array.dtype, array.shape, array.data.ptr)
        self._session.run_with_iobinding(binding)


@cache
def preload_libraries() -> None:
    """Loads CUDA's libraries and cuDNN from site-packages/nvidia, where the loader does not search; once per process.

    ONNX Runtime's messages are suppressed: if a session cannot use the GPU, `missing_library` names the library.
    """
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def missing_library() -> str:
    """Loads ONNX Runtime's CUDA provider and cuDNN; returns the loader's error, which names the missing library."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
        ctypes.CDLL("libcudnn.so.9")
    except OSError as problem:
        return str(problem)
    return "all of its libraries can be loaded; see its messages above and nvidia-smi"


class TensorRtSession:
    """A TensorRT plan on a GPU, on the device's stream; inputs and outputs stay in the GPU's memory.

    The first `MAX_CUDA_GRAPHS` shapes of batches are captured as CUDA graphs, which replaces hundreds of launches per
    batch by one.

    Args:
        plan: the file of a plan.
        module: `tensorrt` or `tensorrt_rtx`.
        batch: rows of every batch; shorter ones are padded.
        device: the GPU.

    Raises:
        DanqingError: TensorRT cannot load the plan.
    """

    def __init__(self, plan: Path, module: str, batch: int, device: Device) -> None:
        trt = importlib.import_module(module)
        self._device, self.batch = device, batch
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise DanqingError(f"{plan}: {module} cannot load it")
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        input_mode = trt.TensorIOMode.INPUT
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == input_mode]
        self._outputs = {
            name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            for name in names
            if name not in self._inputs
        }
        self._context = self._engine.create_execution_context()
        self._captured: dict[tuple[tuple[int, ...], ...], _CapturedBatch] = {}

    def run(self, **inputs: Any) -> dict[str, Any]:
        xp, batch = self._device.xp, self.batch
        rows = len(next(iter(inputs.values())))
        arrays = {name: self._device.up(inputs[name]) for name in self._inputs}
        parts = [
            self._run_batch({name: pad_rows(xp, array[at : at + batch], batch) for name, array in arrays.items()})
            for at in range(0, rows, batch)
        ]
        return {name: xp.concatenate([part[name] for part in parts])[:rows] for name in self._outputs}

    def _run_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        shapes = tuple(array.shape for array in inputs.values())
        if shapes not in self._captured:
            if len(self._captured) == MAX_CUDA_GRAPHS:
                arrays = {name: self._device.xp.ascontiguousarray(array) for name, array in inputs.items()}
                outputs = self._bind(self._context, arrays)
                self._enqueue(self._context)
                return outputs
            self._captured[shapes] = self._capture(inputs)
        return self._captured[shapes].replay(inputs)

    def _bind(self, context: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Sets the addresses of the inputs and of new outputs; returns the outputs, not yet filled."""
        for name, array in inputs.items():
            context.set_input_shape(name, array.shape)
            context.set_tensor_address(name, array.data.ptr)
        xp = self._device.xp
        outputs = {name: xp.empty(tuple(context.get_tensor_shape(name)), kind) for name, kind in self._outputs.items()}
        for name, array in outputs.items():
            context.set_tensor_address(name, array.data.ptr)
        return outputs

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._device.stream):
            raise RuntimeError("TensorRT refused to run the engine")

    def _capture(self, like: dict[str, Any]) -> _CapturedBatch:
        """Runs once, so that TensorRT does its work for a new shape, and once more for the capture."""
        xp = self._device.xp
        context = self._engine.create_execution_context()  # the graph needs it exclusively
        inputs = {name: xp.ascontiguousarray(array).copy() for name, array in like.items()}
        outputs = self._bind(context, inputs)
        self._enqueue(context)
        stream = xp.cuda.ExternalStream(self._device.stream)
        stream.synchronize()
        stream.begin_capture()
        self._enqueue(context)
        return _CapturedBatch(context, inputs, outputs, stream.end_capture())


class _CapturedBatch(NamedTuple):
    """A CUDA graph that runs one batch, with its fixed input and output buffers."""

    context: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    graph: Any

    def replay(self, inputs: dict[str, Any]) -> dict[str, Any]:
        for name, array in inputs.items():
            self.inputs[name][...] = array
        self.graph.launch()  # on this thread's stream
        return {name: array.copy() for name, array in self.outputs.items()}


def open_session(path: Path, device: Device, batch: int | None = None, tf32: bool = False) -> Session:
    """Opens an ONNX file on the device.

    Args:
        path: the ONNX file.
        device: the device to run on.
        batch: rows of every batch; None for `CPU_BATCH_ROWS` or `GPU_BATCH_ROWS`.
        tf32: see `CudaOnnxSession`.

    Raises:
        DanqingError: as `CudaOnnxSession`.
    """
    if device.kind == "cuda":
        return CudaOnnxSession(path, device, batch or GPU_BATCH_ROWS, tf32)
    return OnnxSession(path, device, batch or CPU_BATCH_ROWS)
