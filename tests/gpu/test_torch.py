"""Torch on a GPU, compared with the model in float32 for several numbers of rows and lengths of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from danqing.engine.core.device import Device
from danqing.trt_models.run.session import MAX_CUDA_GRAPHS, OnnxSession

pytestmark = pytest.mark.gpu
pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["clip image", "clip text"])
def test_batches_agree_and_do_not_depend_on_other_rows(
    gpu: Device, device: Device, name: str, precision: str, tmp_path: Path
) -> None:
    from danqing.trt_models.run.torch_session import CudaTorchSession, write_graph
    from tests.trt_models.small_models import WORDS
    from tests.trt_models.test_torch_session import small_clip

    onnx.save(small_clip(tmp_path)[name], str(tmp_path / "model.onnx"))
    write_graph(tmp_path / "model.onnx", tmp_path / "engine.onnx", precision)
    here, there = OnnxSession(tmp_path / "model.onnx", device), CudaTorchSession(tmp_path / "engine.onnx", gpu, 8)
    chance = np.random.default_rng(0)
    for length in range(4, 4 + MAX_CUDA_GRAPHS + 2):  # the last two are not captured
        if name == "clip text":
            inputs = {"tokens": chance.integers(1, WORDS, (19, length), dtype=np.int32)}
        else:
            inputs = {"pixels": chance.integers(0, 256, (19, 32, 32, 3), dtype=np.uint8)}
        expected, found = here.run(**inputs)["embedding"], there.run(**inputs)["embedding"]
        assert hasattr(found, "__cuda_array_interface__")
        assert (found.get() * expected).sum(axis=1).min() > 0.99
        for row in (0, 18):
            alone = there.run(**{key: array[row : row + 1] for key, array in inputs.items()})["embedding"]
            assert (alone.get() == found[row : row + 1].get()).all()
