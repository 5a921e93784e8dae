"""A model that runs: arrays in, arrays out, any number of rows."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime

from engine.errors import DanqingError

if TYPE_CHECKING:
    from engine.device import Device

BATCH = 8
"""Rows a model sees at once. Always exactly so many: a row's result must not depend on its company."""


class Session(Protocol):
    def run(self, **inputs: Any) -> dict[str, Any]:
        """Named inputs, rows first → named outputs, rows first; arrays of the device."""
        ...


class OnnxSession:
    """ONNX Runtime on CPU cores."""

    def __init__(self, path: Path, device: Device, batch: int = BATCH) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = device.threads
        options.inter_op_num_threads = 1
        self.batch = batch
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        rows = len(next(iter(inputs.values())))
        parts = [
            self._session.run(self._outputs, {name: self._full(a[at : at + self.batch]) for name, a in inputs.items()})
            for at in range(0, rows, self.batch)
        ]
        return {
            name: np.concatenate([part[position] for part in parts])[:rows]
            for position, name in enumerate(self._outputs)
        }

    def _full(self, array: np.ndarray) -> np.ndarray:
        """The last batch, filled up with its first row (kernels may sum in another order for other shapes)."""
        missing = self.batch - len(array)
        return np.concatenate([array, np.repeat(array[:1], missing, axis=0)]) if missing else array


class CudaOnnxSession:
    """ONNX Runtime on a GPU, on the device's stream; inputs and outputs stay in its memory."""

    def __init__(self, path: Path, device: Device) -> None:
        options = {"device_id": "0", "user_compute_stream": str(device.stream)}
        providers = [("CUDAExecutionProvider", options)]
        self._session = onnxruntime.InferenceSession(str(path), providers=providers)
        self._outputs = {output.name: output.shape[1:] for output in self._session.get_outputs()}
        self._xp = device.xp

    def run(self, **inputs: Any) -> dict[str, Any]:
        xp, binding = self._xp, self._session.io_binding()
        rows = len(next(iter(inputs.values())))
        held = {name: xp.ascontiguousarray(xp.asarray(array)) for name, array in inputs.items()}
        outputs = {name: xp.empty((rows, *rest), np.float32) for name, rest in self._outputs.items()}
        for name, array in held.items():
            binding.bind_input(name, "cuda", 0, array.dtype, array.shape, array.data.ptr)
        for name, array in outputs.items():
            binding.bind_output(name, "cuda", 0, array.dtype, array.shape, array.data.ptr)
        self._session.run_with_iobinding(binding)
        return outputs


class TensorRtSession:
    """A TensorRT plan, in our own buffers and on the device's stream."""

    def __init__(self, plan: Path, module: str, most: int, device: Device) -> None:
        trt = importlib.import_module(module)
        self._device, self._most = device, most
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise DanqingError(f"{plan}: {module} cannot load it")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        given = trt.TensorIOMode.INPUT
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == given]
        self._outputs = {
            name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            for name in names
            if name not in self._inputs
        }

    def run(self, **inputs: Any) -> dict[str, Any]:
        xp = self._device.xp
        rows = len(next(iter(inputs.values())))
        parts = [
            self._some({k: a[at : at + self._most] for k, a in inputs.items()}) for at in range(0, rows, self._most)
        ]
        return {name: xp.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _some(self, inputs: dict[str, Any]) -> dict[str, Any]:
        xp, context = self._device.xp, self._context
        held = {name: xp.ascontiguousarray(xp.asarray(inputs[name])) for name in self._inputs}
        for name, array in held.items():
            context.set_input_shape(name, array.shape)
            context.set_tensor_address(name, array.data.ptr)
        outputs = {name: xp.empty(tuple(context.get_tensor_shape(name)), kind) for name, kind in self._outputs.items()}
        for name, array in outputs.items():
            context.set_tensor_address(name, array.data.ptr)
        if not context.execute_async_v3(self._device.stream):
            raise RuntimeError("TensorRT refused to run the engine")
        return outputs


def open_session(path: Path, device: Device) -> Session:
    """The session that runs a model's ONNX on the device."""
    return CudaOnnxSession(path, device) if device.kind == "cuda" else OnnxSession(path, device)
