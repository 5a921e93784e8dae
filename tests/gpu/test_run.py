"""Whole runs on a GPU: like those on the CPU, nothing copied that need not be, no buffer used again too soon."""

from __future__ import annotations

from pathlib import Path

import pytest

import engine.score
from engine.curate import Settings, curate, score_inputs
from engine.demo.crawl import build_crawl
from engine.device import Device
from engine.diff import diff
from engine.recipe import load_recipe
from tests.engine.test_run import tree

pytestmark = pytest.mark.gpu

ON_GPU = Settings(device="cuda")


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return build_crawl(tmp_path_factory.mktemp("demo"))


def test_both_devices_come_to_the_same_verdicts(gpu: Device, crawl: list[str], tmp_path: Path) -> None:
    recipe = load_recipe("embedded")
    here, _, _ = curate(crawl, tmp_path / "cpu", recipe, Settings(score_everything=True))
    there, _, _ = curate(crawl, tmp_path / "gpu", recipe, Settings(score_everything=True, device="cuda"))
    assert diff(here, there).objections == []


def test_only_encoded_bytes_and_captions_go_up_only_scores_come_down(
    gpu: Device, crawl: list[str], tmp_path: Path
) -> None:
    _, spans = score_inputs(
        crawl, tmp_path / "out", load_recipe("embedded"), Settings(score_everything=True, device="cuda")
    )
    pairs = spans["read"].rows
    encoded = sum(Path(shard).stat().st_size for shard in crawl)
    tables = 64 << 20  # dictionaries, once
    assert sum(span.up for span in spans.values()) < 1.2 * encoded + tables
    assert sum(span.down for span in spans.values()) <= 4096 * pairs


def test_threads_at_once_change_no_byte(
    gpu: Device, crawl: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers that a decoder or resizer took back too soon would show here."""
    recipe, score = load_recipe("embedded"), engine.score.score
    curate(crawl, tmp_path / "at_once", recipe, ON_GPU)
    monkeypatch.setattr("engine.workers.score", lambda *given, **named: score(*given, **named, room=0))
    curate(crawl, tmp_path / "in_turn", recipe, ON_GPU)
    assert tree(tmp_path / "at_once") == tree(tmp_path / "in_turn")
