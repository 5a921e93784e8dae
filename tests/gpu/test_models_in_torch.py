"""Training on a GPU, and the perplexity of captions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.core.text_column import TextColumn
from danqing.engine.stages.base import Context
from danqing.trt_models.model_set import ModelSet

pytestmark = pytest.mark.gpu
pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")
from tests.engine.train.material import journal, planted_pairs, write_checkpoint, write_run  # noqa: E402
from tests.engine.train.test_train import RECIPE, TEMPLATES, write_suite  # noqa: E402
from tests.trt_models.conftest import store  # noqa: E402, F401 - a fixture
from tests.trt_models.test_perplexity import card, network  # noqa: E402, F401 - fixtures


@pytest.mark.parametrize("decode", ["auto", "cpu"])
def test_planted_classes_are_learnt(decode: str, gpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch.compile, which takes a minute: the benchmark's step `train` has it."""
    from danqing.engine.evaluate.evaluation import evaluate
    from danqing.engine.evaluate.suites import open_suite
    from danqing.engine.train import loop
    from danqing.engine.train.evaluating import trained_towers
    from danqing.engine.train.model import Source

    monkeypatch.setattr(loop, "can_compile", lambda: False)
    pairs = planted_pairs(320)
    run, checkpoint = write_run(tmp_path / "run", pairs), write_checkpoint(tmp_path / "siglip", [t for _, t in pairs])
    recipe = dataclasses.replace(RECIPE, checkpoint_steps=40)
    options = loop.TrainOptions(device=gpu.kind, threads=2, decode=decode)
    trained = loop.train([run], checkpoint, tmp_path / "out", recipe, options)
    lines = journal(tmp_path / "out")
    assert lines[-1]["loss"] < lines[0]["loss"] / 2 and lines[-1]["replaced"] == 0
    source = Source.open(trained.model)
    model, suite = source.load().eval().to(gpu.kind), open_suite(str(write_suite(tmp_path / "suite")))
    with trained_towers("trained", model, source, gpu.name) as towers:
        assert evaluate(towers, suite, TEMPLATES).rows[0].metrics["acc1"] >= 0.8


def test_perplexity_equals_the_cpus(card: str, gpu: Device, device: Device) -> None:  # noqa: F811
    from danqing.engine.stages.perplexity import Perplexity
    from tests.trt_models.test_perplexity import CAPTIONS

    def perplexity(where: Device) -> np.ndarray:
        stage = Perplexity(Context(where, ModelSet({"language_model": card}), frozenset({"text_perplexity"})))
        found: np.ndarray = stage.run(Batch({"row": np.arange(6), "text_clean": TextColumn.of(CAPTIONS)}))["perplexity"]
        return found

    np.testing.assert_allclose(perplexity(gpu), perplexity(device), rtol=1e-3)
