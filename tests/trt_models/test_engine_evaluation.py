"""What a compiled engine costs: a suite measured with the model and with its engine, from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from danqing.engine.cli.main import main
from danqing.engine.evaluate.evaluation import class_vectors
from danqing.engine.evaluate.formats import DIGIT_NAMES
from danqing.engine.evaluate.suites import open_suite
from danqing.engine.evaluate.tables import templates_for
from danqing.engine.evaluate.towers import open_towers
from danqing.trt_models.card import load_card
from danqing.trt_models.compile import graphs
from danqing.trt_models.compile.quantise import quantise_dynamically
from danqing.trt_models.engines import Engines
from tests.engine.evaluate.conftest import coloured, idx, tar
from tests.trt_models import small_models
from tests.trt_models.small_models import CAPTION_TEXT, CAPTION_VOCABULARY, VISION, own_card, publish

PICTURES = 40
RECIPE = """
recipe: towers
models: {{image_embedding: {image}, text_embedding: {text}}}
criteria:
  alignment_distance: {{max: 2}}
"""


def quantise_to_signs(source: Path, out: Path) -> None:
    """Quantises, then keeps only the sign of each weight.

    Whether int8 itself changes an answer depends on the CPU: without VNNI, sums of two products saturate at 32,767,
    which products with weights of 64 never reach.
    """
    quantise_dynamically(source, out)
    model = onnx.load(str(out))
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.INT8:
            signs = 64 * np.sign(onnx.numpy_helper.to_array(weight))
            weight.CopyFrom(onnx.numpy_helper.from_array(signs, weight.name))
    onnx.save(model, str(out))


@pytest.fixture
def small(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the cards of a small Chinese-CLIP, exported, and an engine of its image tower that is worse."""
    vision = VISION | {"image_size": 224, "patch_size": 56}
    checkpoint = publish(small_models.chinese_clip(CAPTION_TEXT, vision), tmp_path / "checkpoint", CAPTION_VOCABULARY)
    folder = tmp_path / "model"
    folder.mkdir()
    for tower in ("image", "text"):
        card = own_card(f"chinese-clip-vit-l-14-{tower}", folder)
        assert main(["models", "export", card, "--from", str(checkpoint)]) == 0
    image = str(folder / "chinese-clip-vit-l-14-image.yaml")
    monkeypatch.setattr(graphs, "quantise_dynamically", quantise_to_signs)
    assert main(["models", "compile", image, "--precision", "int8", "--target", "cpu"]) == 0
    return folder


def digits_as_seen_by(model: str, folder: Path) -> Path:
    """A suite of noise in the place of digits, for which the model's own answers are right."""
    folder.mkdir()
    (folder / "label_cn.txt").write_text("\n".join(DIGIT_NAMES), encoding="utf-8")
    idx(folder / "t10k-images-idx3-ubyte.gz", np.random.default_rng(0).integers(0, 256, (PICTURES, 32, 32)))
    idx(folder / "t10k-labels-idx1-ubyte.gz", np.zeros(PICTURES))
    with open_towers(model) as towers:
        pictures = [example.picture for example in open_suite(str(folder)).datasets[0].examples()]
        scores = towers.images(pictures) @ class_vectors(towers, DIGIT_NAMES, templates_for("digits", True)).T
    idx(folder / "t10k-labels-idx1-ubyte.gz", scores.argmax(1))
    return folder


def test_an_engine_that_costs_accuracy_is_not_taken_into_use(small: Path, tmp_path: Path, capsys: Any) -> None:
    names = [f"{small}@model", f"{small}@int8"]
    digits = digits_as_seen_by(names[0], tmp_path / "digits")
    suite = ["--suite", str(digits)]
    compared = ["evaluate", *names, *suite, "--device", "cpu"]
    capsys.readouterr()
    assert main([*compared, "--json", "--max-drop", "0"]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert "danqing: digits" in printed.err and "--max-drop allows 0" in printed.err
    values = {row["model"]: row["metrics"]["acc1"] for row in found["rows"]}
    difference = next(entry for entry in found["differences"] if entry["metric"] == "acc1")
    assert values[names[0]] == 1 > values[names[1]]
    assert difference["difference"] == pytest.approx(values[names[1]] - 1)
    assert difference["low"] <= difference["difference"] <= difference["high"] <= 0

    image, text = (str(small / f"chinese-clip-vit-l-14-{tower}.yaml") for tower in ("image", "text"))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(image=image, text=text))
    tar(tmp_path / "0.tar", {"0.png": coloured("红"), "0.txt": "公园".encode()})
    verify = ["models", "verify", image, "--recipe", str(tmp_path / "recipe.yaml"), "--data", str(tmp_path / "0.tar"),
              "--min-cosine", "-1", "--max-flips", "1", *suite]  # fmt: skip
    assert main([*verify, "--max-drop", "0"]) == 1
    (engine,) = Engines(load_card(image)).all()
    assert engine.parity and engine.parity.drop == pytest.approx(found["largest_drop"])
    assert replace(engine.parity, wanted={**engine.parity.wanted, "drop": 1}).passed and not engine.parity.passed
    capsys.readouterr()
    assert main(["models", "activate", image]) == 2
    assert "drop" in capsys.readouterr().err
