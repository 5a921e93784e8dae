"""The paper's own recipe, start to finish, on exported checkpoints of its architectures (small, random weights)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from danqing.engine.cli.main import main
from danqing.profiling.bench.published import randomised, save
from danqing.trt_models.export import aesthetic
from tests.engine.score.test_run import samples
from tests.trt_models.test_checkpoints import Predictor, own_card
from tests.trt_models.test_engines import LABELS, TEXT, VISION, VOCABULARY

Make = Callable[..., Path]


def test_the_papers_recipe_runs_on_exported_models(
    make_shard: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DANQING_CACHE", str(tmp_path / "store"))
    clip = ChineseCLIPConfig(
        text_config=TEXT, vision_config=VISION | {"image_size": 224, "patch_size": 56}, projection_dim=24
    )
    levels = dict(enumerate(("neutral", "low", "medium", "high")))
    small = {"embed_dim": 64, "depth": 1, "num_heads": 1, "img_size": 448}
    eva = TimmWrapperConfig(architecture="eva02_base_patch14_448", model_args=small, id2label=levels)
    networks: dict[str, Any] = {
        "clip": ChineseCLIPModel(clip),
        "eva": TimmWrapperForImageClassification(eva),
        "bert": BertForSequenceClassification(BertConfig(**TEXT, **LABELS)),
        "openai": CLIPModel(
            CLIPConfig(text_config=TEXT, vision_config=clip.vision_config.to_dict(), projection_dim=24)
        ),
    }
    for number, (name, network) in enumerate(networks.items()):
        folder = save(randomised(network, number, 0.1), tmp_path / name)
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    torch.save(randomised(Predictor(24), 5).state_dict(), tmp_path / "openai" / aesthetic.HEAD_FILE)
    roles = {
        "image_embedding": ("chinese-clip-vit-l-14-image", "clip"),
        "text_embedding": ("chinese-clip-vit-l-14-text", "clip"),
        "image_safety": ("freepik-nsfw", "eva"),
        "aesthetics": ("laion-aesthetic", "openai"),
        "text_safety": ("text-safety-1m", "bert"),
        "caption_safety": ("text-safety-20m", "bert"),
    }
    settings = []
    for role, (name, source) in roles.items():
        card = own_card(name, tmp_path)
        assert main(["models", "export", card, "--from", str(tmp_path / source)]) == 0
        settings += ["--set", f"models.{role}={card}"]
    settings += ["--set", "also=[aesthetic, perceptual_hash]"]
    shard, out = str(make_shard(samples(0, 12))), tmp_path / "out"
    assert main(["curate", shard, "-o", str(out), "--recipe", "danqing", "--score-everything", *settings]) == 0
    scores = pq.read_table(out / "scores" / "00000.parquet").to_pydict()
    assert scores["error"] == [None] * 12
    for name in ("unsafe_text", "unsafe_caption", "unsafe_image"):
        assert all(0 <= value <= 1 for value in scores[name]) and len(set(scores[name])) > 1, name
    assert np.isfinite(scores["aesthetic"]).all() and len(set(scores["aesthetic"])) == 12
    assert all(0 < value < 2 for value in scores["alignment_distance"])
    features = np.load(out / "features" / "00000.npy")
    assert features.shape == (12, 24) and np.allclose(np.linalg.norm(features.astype(float), axis=1), 1, atol=1e-3)
    assert {step["criterion"] for step in json.loads((out / "funnel.json").read_text())["steps"]} > {
        "redundancy",
        "nouns",
    }
