"""A full run of the paper's recipe on exported small models of its architectures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from danqing.engine.cli.main import main
from danqing.profiling.bench.published import randomised
from danqing.trt_models.export import aesthetic
from tests.engine.score.test_run import samples
from tests.trt_models import small_models
from tests.trt_models.small_models import CAPTION_TEXT, CAPTION_VOCABULARY, VISION, Predictor, own_card, publish

Make = Callable[..., Path]


def test_the_papers_recipe_runs_on_exported_models(make_shard: Make, tmp_path: Path, store: Path) -> None:
    vision = VISION | {"image_size": 224, "patch_size": 56}
    networks = {
        "clip": small_models.chinese_clip(CAPTION_TEXT, vision, 0, 0.1),
        "eva": small_models.eva(448, 1, 64, seed=1, spread=0.1),
        "bert": small_models.bert(CAPTION_TEXT, seed=2, spread=0.1),
        "openai": small_models.clip(CAPTION_TEXT, vision, 3, 0.1),
    }
    for name, network in networks.items():
        publish(network, tmp_path / name, CAPTION_VOCABULARY)
    torch.save(randomised(Predictor(), 5).state_dict(), tmp_path / "openai" / aesthetic.HEAD_FILE)
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
