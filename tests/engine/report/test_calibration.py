"""`calibrate redundancy`: the edits, the counts, and the command over a small run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import silent
from danqing.engine.phases import calibrate_redundancy, curate
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.report import terminal
from danqing.engine.report.calibration import calibration_recipe, draw_pictures
from danqing.engine.report.edits import EDITS, make_copies
from danqing.engine.report.joined import ALL, Bits, Copies, Cosine, count_copies, count_pairs
from danqing.engine.report.terminal import SafeConsole
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings

RECIPE = """
recipe: pictures
models: {image_embedding: efficientnet-lite0-conse}
criteria:
  shortest_edge: {min: 100}
  similar_hash: {column: perceptual_hash, within: 0, keep: "highest:words"}
  redundancy: {within: 0.1, keep: first}
"""
PHOTOGRAPHS = sorted((Path(str(resources.files("danqing.engine"))) / "demo" / "photos").glob("*.jpg"))


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    return [Image.open(path).convert("RGB").resize((240, 180)) for path in PHOTOGRAPHS[:4]]


def test_edits_change_what_they_name(photographs: list[Image.Image]) -> None:
    pixels = np.asarray(photographs[0])
    copies = dict(zip(EDITS, make_copies(pixels), strict=True))
    sizes = {kind: Image.open(io.BytesIO(data)).size for kind, data in copies.items() if data}
    assert [kind for kind, data in copies.items() if data is None] == ["longer edge 320 px"]
    assert sizes["half size"] == (120, 90) and sizes["longer edge 200 px"] == (200, 150)
    assert sizes["20 % of width and height cut off"] == (192, 144) and sizes["border of 5 %"] == (258, 198)
    opened = {kind: np.asarray(Image.open(io.BytesIO(data)), np.float64) for kind, data in copies.items() if data}
    assert opened["grey"].shape == (180, 240)
    assert np.abs(opened["mirrored"][:, ::-1] - pixels).mean() < 5 < np.abs(opened["mirrored"] - pixels).mean()
    changed = np.abs(opened["small mark in a corner"] - pixels).mean(2)
    assert changed[170:, 200:].mean() > 3 * changed[:100].mean()
    assert opened["20 % brighter"].mean() > 1.1 * pixels.mean()
    assert len(copies["JPEG quality 95"] or b"") > 2 * len(copies["JPEG quality 30"] or b"") > 0
    tiny = make_copies(np.zeros((1, 1, 3), np.uint8))
    assert sum(data is None for data in tiny) == 6  # half size, two of fixed size, three crops


def test_copies_and_pairs_are_counted() -> None:
    measure = Cosine((0.5, 0.1))
    assert measure.tried(0.3) == (0.1, 0.5) and Cosine().tried(0.1) == (0.05, 0.08, 0.1, 0.15, 0.2)
    assert Bits().tried(3) == (0, 2, 3, 4, 6, 8) and Cosine().tried(1.5) == (0.75, 1.2, 1.5)
    found = count_copies({"a": np.array([0.0, 0.1, 0.2]), "b": np.empty(0)}, measure, (0.1, 0.5))
    assert found == (Copies("a", 3, 0.1, (1, 3)), Copies("b", 0, None, (0, 0)), Copies(ALL, 3, 0.1, (1, 3)))
    angles = np.arange(300) * np.pi / 600  # more than are compared in one step
    vectors = measure.prepare(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float16))
    group = np.arange(300)
    group[:3] = 0
    joined, others = count_pairs(vectors, [str(n) for n in range(300)], group, measure, (0.1, 0.5))
    assert (joined.pairs, joined.joined, others.pairs) == (3, (3, 3), 300 * 299 // 2 - 3)
    distance = 1 - np.cos(angles[:, None] - angles)[np.triu_indices(300, 1)]
    assert abs(others.joined[1] + 3 - np.count_nonzero(distance < 0.5)) < 50  # float16
    assert [pair.distance for pair in joined.shown] == sorted((pair.distance for pair in joined.shown), reverse=True)
    assert [pair.distance for pair in others.shown] == sorted(pair.distance for pair in others.shown)
    hashes = np.array([0, 1, 7], np.uint64)
    _, others = count_pairs(hashes, ["a", "b", "c"], np.arange(3), Bits(), (0, 1, 2))
    assert others.joined == (0, 1, 2) and [pair.distance for pair in others.shown] == [1, 2, 3]


def test_a_runs_own_pictures_are_compared(
    make_shard: Callable[..., Path],
    photographs: list[Image.Image],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, out = tmp_path / "pictures.yaml", tmp_path / "out"
    recipe.write_text(RECIPE)
    members: dict[str, Any] = {f"{n}.jpg": jpeg(picture) for n, picture in enumerate(photographs)}
    members |= {"same.jpg": members["0.jpg"], "near.jpg": jpeg(photographs[0].resize((200, 150)))}
    members |= {"small.jpg": jpeg(photographs[1].resize((60, 45)))}  # does not reach the comparison
    shard = make_shard(members)
    run, _, _ = curate([str(shard)], out, load_recipe(recipe), Settings())
    assert calibration_recipe(run).columns == ("perceptual_hash",)  # without the column that chooses among copies
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["calibrate", "redundancy", str(out), "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pictures"], found["model"], found["drift"]) == (5, "efficientnet-lite0-conse", 0)
    features, hashes = found["criteria"]
    assert (features["criterion"], features["chosen"], hashes["criterion"]) == ("redundancy", 0.1, "similar_hash")
    copies = {kind["kind"]: (kind["copies"], kind["joined"]) for kind in features["copies"]}
    assert copies["JPEG quality 95"] == (5, [5] * 5) and copies["longer edge 320 px"] == (0, [0] * 5)
    assert copies[ALL][0] == 5 * 15 - 1 and copies[ALL][1] == sorted(copies[ALL][1]) and copies[ALL][1][-1] > 50
    assert [c["grouped"]["pairs"] + c["others"]["pairs"] for c in (features, hashes)] in ([10, 10], [6, 10])
    near = [pair for c in (features, hashes) for pair in c["grouped"]["shown"]]
    assert [(pair["first"], pair["second"]) for pair in near] == [("00000 0", "00000 near")]
    again = calibrate_redundancy(run, 5, 0, device="cpu", threads=1, progress=silent)
    assert json.loads(json.dumps(asdict(again))) == {name: found[name] for name in asdict(again)}
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    monkeypatch.setattr("danqing.engine.phases.calibrate_redundancy", lambda *_: again)
    assert main(["calibrate", "redundancy", str(out), "--quiet"]) == 0 and capsys.readouterr().out == ""
    monkeypatch.setattr(terminal, "console", SafeConsole(width=140))
    assert main(["calibrate", "redundancy", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "< 0.1*" in shown and "large watermark across" in shown and "00000 near" in shown
    monkeypatch.undo()

    draws = [draw_pictures(run, 2, seed)["key"].to_pylist() for seed in range(8)]
    assert draws[0] == draw_pictures(run, 2, 0)["key"].to_pylist() and len(set(map(tuple, draws))) > 2

    shard.write_bytes(make_shard(members | {"0.jpg": members["1.jpg"], "same.jpg": members["1.jpg"]}, "b").read_bytes())
    with pytest.raises(DanqingError, match="was changed since it was scored"):
        calibrate_redundancy(run, 9, progress=silent)
    shard.unlink()
    with pytest.raises(DanqingError, match="is missing; the pictures of this run are read from it"):
        calibrate_redundancy(run, 9, progress=silent)
    with pytest.raises(DanqingError, match="--within 2: a cosine distance between 0 and 2"):
        calibrate_redundancy(run, 9, within=(2,), progress=silent)
    run.manifest["models"]["image_embedding"]["card"] = "another"
    with pytest.raises(DanqingError, match="was changed since the run was scored"):
        calibrate_redundancy(run, 9, progress=silent)
    del run.manifest["decided"]
    with pytest.raises(DanqingError, match="no verdicts yet"):
        calibrate_redundancy(run, 9, progress=silent)
    assert Run.open(out).manifest["decided"]
