"""A run on a simulated GPU has the results of a run on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from danqing.engine.phases import curate
from danqing.engine.report.differences import Tolerance, diff
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from tests.conftest import picture
from tests.engine.score.test_run import GOOD
from tests.simulated import RECIPE, run_simulated


def test_a_simulated_gpu_has_the_results_of_the_cpu(make_shard: Callable[..., Path], tmp_path: Path) -> None:
    small = (64, 48)
    members = {f"{n}.jpg": picture(n, small) for n in range(4)} | {f"{n}.txt": f"{GOOD}，第{n}张" for n in range(4)}
    members |= {
        "near.jpg": picture(0, (66, 50)), "near.txt": "同一张照片",
        "png.png": picture(7, small, "PNG"), "png.txt": "繁體字的說明文字😀",
        "cut.jpg": picture(8)[:900], "cut.txt": GOOD,
        "html.jpg": b"<html>", "html.txt": GOOD,
    }  # fmt: skip
    shards = [str(make_shard(members)), str(make_shard({"x.jpg": picture(9, small), "x.txt": GOOD}, "00001.tar"))]
    run_simulated("-m", "tests.simulated", str(tmp_path / "there"), *shards)
    here, _, _ = curate(shards, tmp_path / "here", RECIPE, Settings(score_everything=True))
    found = diff(here, Run.open(tmp_path / "there"), Tolerance(within=1e-6, cosine=1 - 1e-6, flips=0))
    assert found.rows == 9 and found.compared == 7 and found.objections == []
    # captions go up once, in one batch, and clean captions come down once; later stages send positions of rows at most
    copies, rows = json.loads((tmp_path / "there.json").read_text()), 9
    captions = [text for text in (*members.values(), GOOD) if isinstance(text, str)]
    cleaned = [text for shard in here.shards for text in pq.read_table(here.scores_path(shard.number))["text_clean"]]
    assert copies["caption"] == sum(len(text.encode()) for text in captions) + 8 * (rows + 1)
    assert copies["refine"] + copies["tokens"] <= 8 * rows
    hashes = 32 * rows  # `caption_hash`, in hex digits
    assert copies["text to the host"] == sum(len(text.as_py().encode()) for text in cleaned) + hashes
