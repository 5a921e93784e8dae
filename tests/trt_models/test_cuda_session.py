"""ONNX Runtime's session for GPUs on a mock GPU: bound arrays, padded batches, errors for missing libraries."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.trt_models.run import session
from danqing.trt_models.run.session import CUDA_PROVIDER, CudaOnnxSession, numpy_type, open_session, pad_rows
from tests.strict import MockLibrary, OnDevice

InferenceSession = onnxruntime.InferenceSession


class Binding:
    """Mock of ONNX Runtime's IOBinding, with addresses of host memory."""

    def __init__(self) -> None:
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[str, np.ndarray] = {}

    def bind_input(self, name: str, kind: str, number: int, dtype: Any, shape: Any, address: int) -> None:
        assert (kind, number) == ("cuda", 1)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        found = np.frombuffer((ctypes.c_byte * size).from_address(address), dtype).reshape(shape)
        self.inputs[name] = found

    def bind_output(self, name: str, *place: Any) -> None:
        self.bind_input(name, *place)
        self.outputs[name] = self.inputs.pop(name)


class MockSession:
    """Mock InferenceSession whose CUDA provider runs on the CPU."""

    def __init__(self, path: str, providers: list[Any]) -> None:
        ((name, self.options),) = providers
        assert name == CUDA_PROVIDER
        self.shapes: list[tuple[int, ...]] = []
        self.inner = InferenceSession(path, providers=["CPUExecutionProvider"])
        self.get_outputs, self.io_binding = self.inner.get_outputs, Binding

    def get_providers(self) -> list[str]:
        return [CUDA_PROVIDER, "CPUExecutionProvider"]

    def run_with_iobinding(self, binding: Binding) -> None:
        self.shapes.append(next(iter(binding.inputs.values())).shape)
        for output, found in zip(binding.outputs.values(), self.inner.run(None, binding.inputs), strict=True):
            output[...] = found


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER])
    monkeypatch.setattr(onnxruntime, "InferenceSession", MockSession)
    address = property(lambda array: SimpleNamespace(ptr=array.ctypes.data))
    monkeypatch.setattr(OnDevice, "data", address, raising=False)
    return Device("cuda", 1, ThreadPoolExecutor(1), MockLibrary(np), number=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of tokens int32 (N, T): their sum as float32 (N,) and as float16 (N, 1)."""
    nodes = [
        helper.make_node("Cast", ["tokens"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["x", "axis"], ["half_sum"], keepdims=1),
        helper.make_node("Cast", ["half_sum"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=0),
    ]
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT32, ["N", "T"])
    outputs = [
        helper.make_tensor_value_info("total", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("half", TensorProto.FLOAT16, ["N", 1]),
    ]
    axis = onnx.numpy_helper.from_array(np.array([1]), "axis")
    graph = helper.make_graph(nodes, "g", [tokens], outputs, [axis])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_every_batch_is_full(gpu: Device, model: Path) -> None:
    opened = open_session(model, gpu, 8)
    tokens = np.arange(60, dtype=np.int32).reshape(20, 3)
    found = opened.run(tokens=tokens)
    inner: Any = opened._session  # type: ignore[attr-defined]
    assert inner.shapes == [(8, 3)] * 3
    assert inner.options == {
        "device_id": "1", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
    }  # fmt: skip
    assert all(isinstance(array, OnDevice) for array in found.values())
    assert found["total"].dtype == np.float32 and found["half"].dtype == np.float16
    np.testing.assert_array_equal(found["total"].get(), tokens.sum(axis=1))
    np.testing.assert_array_equal(found["half"].get()[:, 0], tokens.sum(axis=1))
    assert CudaOnnxSession(model, gpu, tf32=True)._session.options["use_tf32"] == "1"


def test_a_full_batch_is_not_copied() -> None:
    array = np.arange(12).reshape(4, 3)
    assert pad_rows(np, array, 4) is array
    np.testing.assert_array_equal(pad_rows(np, array[:3], 5)[:, 0], [0, 3, 6, 0, 0])


@pytest.mark.parametrize("name", ["float", "double", "float16", "int32", "uint8"])
def test_types_are_converted_to_numpys(name: str) -> None:
    expected = {"float": "float32", "double": "float64"}.get(name, name)
    assert numpy_type(f"tensor({name})") == np.dtype(expected)


def test_a_session_that_falls_back_to_the_cpu_is_refused(
    gpu: Device, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MockSession, "get_providers", lambda self: ["CPUExecutionProvider"])
    # The installed package has no CUDA provider, so the loader reports that file.
    with pytest.raises(DanqingError, match=r"cannot use the GPU: .*libonnxruntime_providers_cuda\.so.*\[cuda\]"):
        CudaOnnxSession(model, gpu)
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments: None)
    with pytest.raises(DanqingError, match="all of its libraries can be loaded"):
        CudaOnnxSession(model, gpu)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DanqingError, match="runs on CPUs only; pip uninstall onnxruntime"):
        CudaOnnxSession(model, gpu)


def test_libraries_are_loaded_once_without_messages(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    calls: list[None] = []

    def preload_dlls() -> None:
        calls.append(None)
        print("Failed to load libcublas.so.13")

    session.preload_libraries.cache_clear()
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls, raising=False)
    session.preload_libraries()
    session.preload_libraries()
    assert len(calls) == 1 and capsys.readouterr().out == ""
    session.preload_libraries.cache_clear()
    monkeypatch.delattr(onnxruntime, "preload_dlls")
    session.preload_libraries()
