"""Torch as the runtime of an engine: the commands, and its session for GPUs on a mock GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import danqing.trt_models.compile.compilers
import danqing.trt_models.run.torch_session
from danqing.engine.cli.main import main
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.trt_models.card import Card
from danqing.trt_models.compile.compilers import compile_engine
from danqing.trt_models.engines import Engines, open_active, runtime_version
from danqing.trt_models.run.session import MAX_CUDA_GRAPHS, OnnxSession
from danqing.trt_models.run.torch_graph import TorchGraph
from danqing.trt_models.run.torch_session import CudaTorchSession, TorchSession
from danqing.trt_models.store import onnx_path
from tests.engine.score.test_run import samples
from tests.strict import MockLibrary, OnDevice, on_device, plain
from tests.trt_models.small_models import CAPTION_VOCABULARY, ragged_tokens
from tests.trt_models.test_engines import RECIPE

NAME = "text-safety-1m"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_commands_from_model_to_active_engine_and_back(
    card: Card, make_shard: Callable[..., Path], tmp_path: Path, device: Device, precision: str, capsys: Any
) -> None:
    shard, recipe = str(make_shard(samples(0, 20))), tmp_path / "network.yaml"
    recipe.write_text(RECIPE)
    asked = ["--runtime", "torch", "--precision", precision, "--target", "cpu"]
    assert main(["models", "compile", NAME, *asked]) == 0
    assert main(["models", "activate", NAME]) == 2
    assert "parity was never measured" in capsys.readouterr().err
    min_cosine = "0.99" if precision == "bf16" else "0.999"  # random weights lose more than trained ones
    assert main(["models", "verify", NAME, "--recipe", str(recipe), "--data", shard, "--min-cosine", min_cosine]) == 0
    (engine,) = Engines(card).all()
    assert (engine.runtime, engine.runtime_version) == ("torch", runtime_version("torch"))
    assert engine.parity is not None and engine.parity.passed
    assert 0 < 1 - engine.parity.cosine_min < (1e-6 if precision == "fp32" else 0.05)
    assert main(["models", "activate", NAME]) == 0
    session, digest = open_active(card, device)[:2]
    assert isinstance(session, TorchSession) and digest == engine.sha256
    assert main(["curate", shard, "-o", str(tmp_path / "out"), "--recipe", str(recipe)]) == 0
    assert engine.sha256 in (tmp_path / "out" / "run.json").read_text()
    assert main(["models", "activate", NAME, "--rollback", "--target", "cpu"]) == 0
    assert isinstance(open_active(card, device)[0], OnnxSession)


def test_precisions_that_torch_lacks_are_refused(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    for precision, target, words in (
        ("fp16", "cpu", "on cpu torch runs fp32 or bf16"),
        ("fp32", "sm_90", "on sm_90 torch runs fp16 or bf16"),
        ("int8", "sm_90", "on sm_90 torch runs fp16 or bf16"),
        ("fp16", "h100", "write `cpu`, or a GPU's architecture"),
    ):
        with pytest.raises(DanqingError, match=words):
            compile_engine(card, precision, target, runtime="torch")
    monkeypatch.setattr(danqing.trt_models.compile.compilers, "runtime_version", lambda runtime: None)
    with pytest.raises(DanqingError, match=r"pip install 'danqing-engine\[torch\]'"):
        compile_engine(card, "fp16", "sm_90", runtime="torch")
    assert Engines(card).all() == []


def test_torch_is_not_imported_before_it_is_used() -> None:
    modules = "engine.cli.main", "trt_models.engines", "trt_models.compile.compilers", "profiling.parity"
    code = f"import sys; {''.join(f'import danqing.{name}; ' for name in modules)} print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240).stdout == "False\n"


class MockGraph:
    """Runs on the CPU and keeps its last call, for `MockCudaGraph` to replay."""

    def __init__(self, model: onnx.ModelProto, place: torch.device) -> None:
        assert place == torch.device("cuda", 0)
        self.graph = TorchGraph(model, torch.device("cpu"))
        self.outputs, self.calls, self.captured = self.graph.outputs, 0, 0
        MockGraph.newest = self

    newest: MockGraph

    def __call__(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        self.last = inputs, self.graph(**inputs)
        return self.last[1]


class MockCudaGraph:
    """Mock of `torch.cuda.CUDAGraph`, which replays the last call of the newest `MockGraph`."""

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        assert capture_error_mode == "relaxed"
        self.graph, self.calls = MockGraph.newest, MockGraph.newest.calls

    def capture_end(self) -> None:
        assert self.graph.calls == self.calls + 1
        self.graph.captured += 1
        self.inputs, self.outputs = self.graph.last

    def replay(self) -> None:
        for name, tensor in self.graph.graph(**self.inputs).items():
            self.outputs[name].copy_(tensor)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, device: Device) -> Device:
    """A mock GPU: mock CuPy arrays, and torch on the CPU."""
    monkeypatch.setattr(
        danqing.trt_models.run.torch_session, "from_dlpack", lambda array: torch.from_dlpack(plain(array))
    )
    mocks = {
        "CUDAGraph": MockCudaGraph,
        "ExternalStream": lambda stream, place: stream,
        "graph_pool_handle": lambda: (0, 1),
        "is_available": lambda: True,
        "stream": lambda stream: nullcontext(),
    }
    for name, mock in mocks.items():
        monkeypatch.setattr(torch.cuda, name, mock)
    return Device("cuda", 1, device.pool, MockLibrary(np))


def test_batches_on_a_gpu_are_full_and_captured_once_per_shape(
    card: Card, gpu: Device, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Engines(card).checked(compile_engine(card, "bf16", "sm_90", runtime="torch"))
    here = TorchSession(path, device, 4)
    monkeypatch.setattr(danqing.trt_models.run.torch_session, "TorchGraph", MockGraph)
    there = CudaTorchSession(path, gpu, 4)
    chance = np.random.default_rng(0)
    for turn in range(2):
        for length in range(3, 3 + MAX_CUDA_GRAPHS + 2):
            for rows in (4, 7):
                tokens = chance.integers(1, len(CAPTION_VOCABULARY), (rows, length), dtype=np.int32)
                array = on_device(tokens) if rows == 4 else tokens  # also accepts tokens from the host
                found = there.run(tokens=array)["probability"]
                assert isinstance(found, OnDevice) and found.shape == (rows,)
                assert (found.get() == here.run(tokens=tokens)["probability"]).all()
        assert MockGraph.newest.captured == MAX_CUDA_GRAPHS
        # Two calls per capture; the two other lengths have 1 and 2 batches, which run directly in each turn.
        assert MockGraph.newest.calls == 2 * MAX_CUDA_GRAPHS + 2 * 3 * (turn + 1)


def test_an_engine_for_a_gpu_runs_on_a_cpu(card: Card, device: Device) -> None:
    """The engine's file is the graph in lower precision."""
    engine = compile_engine(card, "fp16", "sm_90", runtime="torch")
    with pytest.raises(DanqingError, match="cannot use a GPU; install a build for CUDA"):
        CudaTorchSession(Engines(card).path(engine), device, 8)
    expected = OnnxSession(onnx_path(card), device).run(tokens=ragged_tokens() % len(CAPTION_VOCABULARY))["probability"]
    found = TorchSession(Engines(card).checked(engine), device, 8).run(tokens=ragged_tokens() % len(CAPTION_VOCABULARY))
    np.testing.assert_allclose(found["probability"], expected, atol=5e-3)
