"""Trains a small model on scikit-learn's digits with Chinese captions: `pytest -s tests/slow/digits.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from danqing.engine.evaluate.evaluation import evaluate
from danqing.engine.evaluate.suites import open_suite
from danqing.engine.train.evaluating import trained_towers
from danqing.engine.train.loop import TrainOptions, train
from danqing.engine.train.model import Source
from danqing.engine.train.recipe import load_train_recipe
from tests.engine.train.material import encoded, write_checkpoint, write_run

NAMES = "零一二三四五六七八九"
TEMPLATES = ("手写的数字{c}", "数字{c}的照片", "一张写着{c}的图片", "{c}")
TRAINED = 1400
SETTINGS = ["batch=128", "steps=500", "learning_rate=2e-3", "warm_up_steps=0", "log_steps=25", "checkpoint_steps=500"]


def accuracy(folder: Path, suite: Path) -> float:
    source = Source.open(folder)
    with trained_towers("digits", source.load().eval(), source, "cpu") as towers:
        return evaluate(towers, open_suite(str(suite)), TEMPLATES).rows[0].metrics["acc1"]


def test_unseen_digits_are_named(tmp_path: Path) -> None:
    """From scratch, 188,000 parameters: 0.8 on the 397 digits that the training has not seen."""
    torch.set_num_threads(1)
    found, rng = load_digits(), np.random.default_rng(0)
    order = rng.permutation(len(found.target))
    labels = found.target[order]
    pictures = [encoded(np.kron(image, np.ones((4, 4)))[..., None].repeat(3, 2) * (255 / 16))
                for image in found.images[order]]  # fmt: skip
    captions = [str(rng.choice(TEMPLATES)).replace("{c}", NAMES[label]) for label in labels]
    run = write_run(tmp_path / "run", list(zip(pictures, captions, strict=True))[:TRAINED])
    suite = tmp_path / "unseen"
    for number in range(TRAINED, len(labels)):
        place = suite / "test" / f"{labels[number]:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(pictures[number])
    (suite / "label_cn.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    start = write_checkpoint(tmp_path / "checkpoint", captions, width=64)
    recipe = load_train_recipe("danqing", SETTINGS)
    trained = train([run], start, tmp_path / "out", recipe, TrainOptions("cpu", 1))
    before, after = accuracy(start, suite), accuracy(trained.model, suite)
    print(f"\nzero-shot accuracy on {len(labels) - TRAINED} unseen digits: {before:.3f}, after 500 steps {after:.3f}")
    assert before < 0.3 and after >= 0.8
