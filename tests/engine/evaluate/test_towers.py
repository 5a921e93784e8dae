"""The engine's towers, from the command line: the demo's figures, a probe, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.evaluate.towers import find_model, open_towers

PHOTOS = Path(__file__).parents[3] / "engine" / "demo" / "photos"


def test_the_demos_retrieval_with_the_default_towers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "evaluation.json"
    assert main(["evaluate", "embedded", "--suite", "demo", "-o", str(file), "--device", "cpu"]) == 0
    assert "image_retrieval_recall@1" in capsys.readouterr().out
    (row,) = json.loads(file.read_text())["rows"]
    assert row["metrics"]["image_retrieval_recall@1"] == pytest.approx(0.264, abs=0.05)
    assert row["metrics"]["text_retrieval_recall@1"] == pytest.approx(0.324, abs=0.05)
    assert (row["pictures"], row["texts"], row["undecodable"]) == (74, 148, 0)


def test_models_of_the_command_line(tmp_path: Path) -> None:
    cards = {"image_embedding": "siglip2-b-16-256-image", "text_embedding": "siglip2-b-16-256-text"}
    assert find_model("siglip2-b-16-256") == ("siglip2-b-16-256", cards, "")
    assert find_model("siglip2-b-16-256-image,siglip2-b-16-256-text@fp8")[1:] == (cards, "fp8")
    assert find_model("embedded")[1]["image_embedding"] == "efficientnet-lite0-conse"
    for name, message in (
        ("siglip2-b-16", r"no model 'siglip2-b-16'; did you mean 'siglip2-b-16-256'"),
        ("a,b,c", "two cards as IMAGE_CARD,TEXT_CARD"),
        ("embedded@", "name an engine behind the @"),
        (str(tmp_path), r"needs exactly one card \*-image\.yaml; there: none"),
    ):
        with pytest.raises(DanqingError, match=message):
            find_model(name)
    wrong = pytest.raises(DanqingError, match="use-multilingual is a model for text_embedding, not an image_embedding")
    with wrong, open_towers("use-multilingual,efficientnet-lite0-conse"):
        pass


def test_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [str(PHOTOS / name) for name in ("acanthus-plant.jpg", "abandoned-wooden-house.jpg")]
    page = tmp_path / "probe.html"
    words = ["probe", "embedded", "--text", "房子", "<植物>", "--images", *pictures, "--device", "cpu"]
    assert main([*words, "--json", "-o", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)["cosines"]
    cosine = {(entry["text"], Path(entry["picture"]).name): entry["cosine"] for entry in found}
    assert cosine["房子", "abandoned-wooden-house.jpg"] > cosine["房子", "acanthus-plant.jpg"]
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 4 and "&lt;植物&gt;" in text and "<植物>" not in text
    assert f"{cosine['房子', 'acanthus-plant.jpg']:.3f}" in text
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    for file, message in ((tmp_path / "broken.jpg", "cannot be decoded"), (tmp_path / "none.jpg", "no such file")):
        assert main(["probe", "embedded", "--text", "猫", "--images", str(file), "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err


def test_wrong_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["embedded", "--suite", "nowhere"], "no such file or folder"),
        (["embedded", "embedded", "--suite", "demo"], "a model is given twice"),
        (["embedded", "--suite", "demo", "--suite", "demo"], "two data sets are called demo"),
        (["embedded", "--suite", "demo", "--max-drop", "0.1"], "give something to compare with"),
        (["embedded", "--suite", "demo", "--against", str(tmp_path / "none.json")], "none.json: cannot be read"),
        (["embedded", "--suite", "demo", "--templates", str(tmp_path / "none.txt")], "none.txt: is missing"),
    ):
        assert main(["evaluate", *words]) == 2
        assert message in capsys.readouterr().err
