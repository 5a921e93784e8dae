"""The engine's towers, from the command line: the demo's figures, a probe, errors."""

from __future__ import annotations

import json
from contextlib import nullcontext
from importlib import resources
from pathlib import Path

import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.evaluate import probe
from danqing.engine.evaluate.towers import find_model, open_towers
from tests.engine.evaluate.conftest import ColourTowers, coloured


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


def test_a_model_that_was_never_exported_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DANQING_CACHE", str(tmp_path / "cache"))
    for text, message in (
        ("siglip2-b-16-256", "image and siglip2-b-16-256-text were never exported; run `danqing models export "
         "siglip2-b-16-256 --from FOLDER` first"),
        ("siglip2-b-16-256-image,use-multilingual", "siglip2-b-16-256-image was never exported; run `danqing models "
         "export siglip2-b-16-256-image --from FOLDER` first"),
        (str(tmp_path), f"a-image and a-text were never exported; run `danqing models export {tmp_path}` first"),
    ):  # fmt: skip
        for tower in ("image", "text"):
            name = f"siglip2-b-16-256-{tower}"
            content = (resources.files("danqing.trt_models") / "cards" / f"{name}.yaml").read_text(encoding="utf-8")
            content = content.replace(f"name: {name}", f"name: a-{tower}")
            (tmp_path / f"a-{tower}.yaml").write_text(content, encoding="utf-8")
        assert main(["evaluate", text, "--suite", "demo", "--device", "cpu"]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_an_output_that_is_a_folder_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for output, message in ((tmp_path, "is a folder; name a file in it"), (Path(__file__) / "a.json", "is a file;")):
        assert main(["evaluate", "no-model", "--suite", "demo", "-o", str(output)]) == 2
        assert message in capsys.readouterr().err


def test_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "open_towers", lambda name, settings: nullcontext(ColourTowers()))
    pictures = [str(tmp_path / f"{name}.png") for name in "红绿"]
    for path in pictures:
        Path(path).write_bytes(coloured(Path(path).stem))
    page = tmp_path / "probe.html"
    words = ["probe", "embedded", "--text", "红", "<绿>", "--images", *pictures, "--device", "cpu"]
    assert main([*words, "--json", "-o", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)["cosines"]
    cosine = {(entry["text"], Path(entry["picture"]).name): entry["cosine"] for entry in found}
    assert cosine["红", "红.png"] > 0.98 and cosine["红", "绿.png"] < 0.2
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 4 and "&lt;绿&gt;" in text and "<绿>" not in text
    assert f"{cosine['红', '绿.png']:.3f}" in text
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
