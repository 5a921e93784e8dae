"""Texts of any length: fixed widths, and scores that do not depend on the other rows of a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import danqing.engine.score.loop
from danqing.engine.core.device import Device, open_device
from danqing.engine.phases import score_inputs
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from danqing.engine.score.ledger import Ledger
from danqing.trt_models.card import Card, TokenInput
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.run.texts import run_texts
from danqing.trt_models.run.tokenizer import widths
from tests.conftest import picture
from tests.engine.score.test_run import GOOD, StoppedError
from tests.trt_models.small_models import CAPTION_VOCABULARY

pytestmark = pytest.mark.usefixtures("store")
RECIPE = (
    "recipe: network\nmodels: {text_safety: text-safety-1m}\ncriteria:\n  unsafe_text: {max: 1}\n  words: {min: 1}\n"
)


def test_a_width_depends_on_the_text_alone() -> None:
    lengths = np.array([1, 8, 9, 16, 17, 33, 52], np.int32)
    assert widths(lengths, TokenInput("wordpiece", "", max_length=52)).tolist() == [8, 8, 16, 16, 32, 52, 52]
    assert widths(lengths[:2], TokenInput("wordpiece", "", max_length=6)).tolist() == [6, 6]
    assert widths(lengths, TokenInput("sentencepiece", "", max_length=64, fixed_length=True)).tolist() == [64] * 7


def test_outputs_do_not_depend_on_other_texts(card: Card, device: Device) -> None:
    models, chance = ModelSet({"text_safety": card.name}), np.random.default_rng(0)
    session, inputs = models.session("text_safety", device), models.tokenizer("text_safety").card
    lengths = chance.integers(2, 120, 90)
    ids = chance.integers(4, len(CAPTION_VOCABULARY), (90, inputs.max_length), np.int32)
    ids[np.arange(inputs.max_length) >= lengths[:, None]] = CAPTION_VOCABULARY.index("[PAD]")
    together = run_texts(session, inputs, ids, lengths, device)["probability"]
    assert together.shape == (90,) and len(np.unique(together)) > 80
    order = chance.permutation(90)
    for rows in np.split(order, [1, 3, 40]):
        found = run_texts(session, inputs, ids[rows], lengths[rows], device)["probability"]
        assert (found == together[rows]).all()
    with open_device("cpu", 1) as single:
        found = run_texts(models.session("text_safety", single), inputs, ids, lengths, single)["probability"]
        assert (found == together).all()


@pytest.fixture
def shards(make_shard: Callable[..., Path]) -> list[str]:
    """Three shards of captions of 1 to about 120 tokens."""
    members: list[dict[str, bytes | str]] = [{}, {}, {}]
    for row in range(60):
        members[row % 3] |= {f"{row}.jpg": picture(row % 5), f"{row}.txt": (GOOD * 7)[: 1 + row * 37 % 120]}
    return [str(make_shard(of, f"{number:05d}.tar")) for number, of in enumerate(members)]


def scores(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "scores").glob("*.parquet"))]


def test_bytes_do_not_depend_on_how_texts_are_scored(
    card: Card, shards: list[str], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    score_inputs(shards, whole, recipe, Settings(threads=2))
    run, _ = score_inputs(shards, tmp_path / "workers", recipe, Settings(devices=("cpu", "cpu")))
    assert list(run.manifest["engines"]["text_safety"].values()) == [3]  # whichever worker scored them
    score_inputs(shards, tmp_path / "memory", recipe, Settings(memory_limit=6 << 30, max_pixels=1_000_000))
    assert scores(tmp_path / "workers") == scores(tmp_path / "memory") == scores(whole) and len(scores(whole)) == 3
    for rows, threads in ((1, 1), (7, 2)):
        with monkeypatch.context() as small:
            small.setattr(danqing.engine.score.loop, "READ_ROWS", rows)
            small.setattr("danqing.engine.stages.text.Caption.capacity", 50.0 * rows)
            score_inputs(shards, tmp_path / str(rows), recipe, Settings(threads=threads))
        assert scores(tmp_path / str(rows)) == scores(whole)
    enter, left = Ledger.enter, 2

    def failing(self: Ledger, batch: object, gated_at: str | None = None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoppedError
        enter(self, batch, gated_at)  # type: ignore[arg-type]

    with monkeypatch.context() as broken:
        broken.setattr(danqing.engine.score.loop, "READ_ROWS", 11)
        broken.setattr("danqing.engine.stages.text.Caption.capacity", 500.0)
        broken.setattr(Ledger, "enter", failing)
        with pytest.raises(StoppedError):
            score_inputs(shards, tmp_path / "resumed", recipe, Settings())
    score_inputs(shards, tmp_path / "resumed", recipe, Settings())
    assert scores(tmp_path / "resumed") == scores(whole)
