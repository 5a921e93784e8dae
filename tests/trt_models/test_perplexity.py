"""Perplexity of captions: the sums of transformers over one masked copy for each token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from danqing.engine.cli.main import main
from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.text_column import TextColumn
from danqing.engine.stages import perplexity
from danqing.engine.stages.base import Context
from danqing.engine.stages.perplexity import Perplexity
from danqing.trt_models.model_set import ModelSet
from tests.conftest import RECIPE_WITHOUT_NETWORKS
from tests.engine.score.test_run import samples
from tests.trt_models import small_models
from tests.trt_models.small_models import CAPTION_VOCABULARY, SMALL, own_card, publish

VOCABULARY = [*CAPTION_VOCABULARY, "[MASK]"]
IDS = {piece: number for number, piece in enumerate(VOCABULARY)}
CAPTIONS = ["公园的草地上有一只可爱的小猫在晒太阳", "小猫", "公园里的猫", "晒" * 40, "", "猫"]
MAX_LENGTH = 24


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return small_models.masked_bert(  # type: ignore[no-any-return]
        SMALL | {"num_hidden_layers": 1, "vocab_size": len(VOCABULARY), "max_position_embeddings": 128}
    )


def expected(network: torch.nn.Module, caption: str) -> float:
    """exp(-1/n Σ log P(w_t | all others)), as Salazar et al. define it."""
    pieces = [IDS.get(character, IDS["[UNK]"]) for character in caption]
    tokens = [IDS["[CLS]"], *pieces[: MAX_LENGTH - 2], IDS["[SEP]"]]
    places = torch.arange(1, len(tokens) - 1)
    copies = torch.tensor([tokens] * len(places))
    copies[torch.arange(len(places)), places] = IDS["[MASK]"]
    with torch.inference_mode():
        shares = network(input_ids=copies).logits[torch.arange(len(places)), places].log_softmax(-1)
    return float(torch.exp(-shares[torch.arange(len(places)), tokens[1:-1]].mean()))


@pytest.fixture
def card(network: torch.nn.Module, tmp_path: Path, store: Path) -> str:
    input_ = {"kind": "wordpiece", "file": "vocab.txt", "max_length": MAX_LENGTH}
    card = own_card("bert-chinese", tmp_path, token_input=input_)
    publish(network, tmp_path / "bert", VOCABULARY)
    assert main(["models", "export", card, "--from", str(tmp_path / "bert")]) == 0
    return card


def test_it_is_the_mean_over_masked_copies(
    card: str, network: torch.nn.Module, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context(device, ModelSet({"language_model": card}), frozenset({"text_perplexity"}))
    stage, found = Perplexity(context), []
    for rows in (1, 100):  # calls of the network
        monkeypatch.setattr(perplexity, "NETWORK_ROWS", rows)
        batch = Batch({"row": np.arange(len(CAPTIONS)), "text_clean": TextColumn.of(CAPTIONS), "error": [None] * 6})
        stage(batch)
        found.append(batch["text_perplexity"])
        assert [error is not None for error in batch["error"]] == [not caption for caption in CAPTIONS]
    np.testing.assert_array_equal(*found)
    assert np.isnan(found[0][4]) and found[0].dtype == np.float32
    wanted = [expected(network, caption) for caption in CAPTIONS if caption]
    np.testing.assert_allclose(np.delete(found[0], 4), wanted, rtol=1e-4)


def test_a_recipe_drops_by_it_and_the_report_shows_it(
    card: str, make_shard: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE_WITHOUT_NETWORKS + "  text_perplexity: {max: 30}\n")
    out, shard = tmp_path / "out", str(make_shard(samples(0, 6)))
    command = ["curate", shard, "-o", str(out), "--recipe", str(tmp_path / "r.yaml"), "--quiet"]
    assert main([*command, "--set", f"models.language_model={card}"]) == 0
    values = pq.read_table(out / "scores" / "00000.parquet")["text_perplexity"].to_numpy()
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert (values >= 1).all() and sum(report["figures"]["perplexity"]["all"]) == 6
    assert sum(report["criteria"]["text_perplexity"]["dropped"]) == (values > 30).sum()


def test_other_models_are_refused(device: Device) -> None:
    with pytest.raises(DanqingError, match="text-safety-1m is a model for text_classifier, not a language_model"):
        Perplexity(Context(device, ModelSet({"language_model": "text-safety-1m"}), frozenset()))
