"""Full runs and their parts on a GPU: the CPU's results, no unnecessary copies, no buffer reused too early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import danqing.engine.score.loop
from danqing.engine.core import libcudf
from danqing.engine.core.copies import copied
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.strings import Strings
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.groups import near_components
from danqing.engine.decide.dedup.neighbours import nearest_rows
from danqing.engine.demo.crawl import build_crawl
from danqing.engine.phases import curate, score_inputs
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.report.differences import Tolerance, diff
from danqing.engine.report.topics import cluster, open_libraries
from danqing.engine.run.settings import Settings
from danqing.engine.select.frames import measures_of
from danqing.profiling.bench.duplicates import planted
from tests.engine.score.test_run import tree
from tests.kernels.text.texts import random_texts

pytestmark = pytest.mark.gpu

ON_GPU = Settings(device="cuda")
CODEC_TOLERANCE = {"laplacian_variance": 1e-3, "image_entropy": 1e-4, "pixel_std": 1e-4}
"""Pixel statistic → maximum relative difference, from nvJPEG's rounding. On an H200 it changed 0.014 % of the values
by one grey level, and the variance of the Laplacian by 3.6e-6. On equal pixels they agree to 1e-12 (test_pictures)."""
MIN_COSINE = 0.99
"""Minimum cosine of features, since DALI rounds differently from Pillow. On an H200 it was 0.9929."""


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The embedded recipe without the text tower."""
    whole = load_recipe("embedded")
    criteria = tuple(c for c in whole.criteria if c.name not in ("unknown_tokens", "alignment_distance"))
    models = {role: name for role, name in whole.models.items() if role != "text_embedding"}
    return replace(whole, criteria=criteria, models=models)


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return build_crawl(tmp_path_factory.mktemp("demo"))


def test_both_devices_give_the_same_verdicts(gpu: Device, crawl: list[str], recipe: Recipe, tmp_path: Path) -> None:
    here, _, _ = curate(crawl, tmp_path / "cpu", recipe, Settings(score_everything=True))
    there, _, _ = curate(crawl, tmp_path / "gpu", recipe, Settings(score_everything=True, device="cuda"))
    assert diff(here, there, Tolerance(columns=CODEC_TOLERANCE, cosine=MIN_COSINE, flips=0.005)).objections == []


def test_copies_are_encoded_bytes_and_captions_up_and_scores_down(
    gpu: Device, crawl: list[str], recipe: Recipe, tmp_path: Path
) -> None:
    _, spans = score_inputs(crawl, tmp_path / "out", recipe, Settings(score_everything=True, device="cuda"))
    pairs = spans["read"].rows
    encoded = sum(Path(shard).stat().st_size for shard in crawl)
    tables = 64 << 20  # dictionaries, copied once
    assert sum(span.up for span in spans.values()) < 1.2 * encoded + tables
    assert sum(span.down for span in spans.values()) <= 4096 * pairs


def test_pipelined_and_sequential_runs_are_equal(
    gpu: Device, crawl: list[str], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would differ if a decoder or resizer reused a buffer too early."""
    score = danqing.engine.score.loop.score
    curate(crawl, tmp_path / "pipelined", recipe, ON_GPU)
    monkeypatch.setattr("danqing.engine.score.workers.score", lambda *given, **named: score(*given, **named, room=0))
    curate(crawl, tmp_path / "sequential", recipe, ON_GPU)
    assert tree(tmp_path / "pipelined") == tree(tmp_path / "sequential")


def test_a_cudf_column_is_measured_on_the_device(gpu: Device, device: Device) -> None:
    cudf = pytest.importorskip("cudf")
    texts = ["一只橘猫趴在窗台上", None, "", *random_texts(500)]
    column = cudf.Series(texts)[1:]
    copied_before = copied.up
    found = measures_of(column, gpu)
    tables = 64 << 20  # dictionaries, copied once
    assert copied.up - copied_before < tables
    for name, values in measures_of(texts[1:], device).items():
        np.testing.assert_allclose(found[name].get(), values, rtol=1e-6, err_msg=name)
    assert column.to_frame("caption").assign(**found)["words"].dtype == np.float32


def test_libcudf_takes_and_joins_rows_as_array_code_does(gpu: Device) -> None:
    pytest.importorskip("pylibcudf")
    texts = ["", "一只橘猫趴在窗台上", *random_texts(500), ""]
    strings, rows = Strings.of(texts).on(gpu), np.random.default_rng(0).integers(0, len(texts), 700)
    halves = [half for _, half in strings.parts(gpu, 251)]
    for found, expected in (
        (libcudf.gather(strings, rows, gpu), strings.take(rows, gpu)),
        (libcudf.gather(halves[1], rows[rows < 251], gpu), halves[1].take(rows[rows < 251], gpu)),
        (libcudf.gather(strings, rows[:0], gpu), strings.take(rows[:0], gpu)),
        (libcudf.concatenate([*halves, strings], gpu), Strings.concat([*halves, strings], gpu)),
    ):
        assert found.size == expected.size and found.offsets.dtype == np.int64
        assert found.on_host(gpu).arrow() == expected.on_host(gpu).arrow()


def test_cuml_finds_the_topics(gpu: Device) -> None:
    pytest.importorskip("cuml")
    chance = np.random.default_rng(0)
    theme = np.arange(600) % 4
    vectors = (chance.normal(size=(4, 64))[theme] + 0.2 * chance.normal(size=(600, 64))).astype(np.float32)
    _, labels = cluster(vectors, 50, open_libraries(gpu))
    assert [set(labels[theme == number]) for number in range(4)] == [{labels[number]} for number in range(4)]
    assert set(labels) == {0, 1, 2, 3}


def test_near_duplicate_groups_equal_the_cpus(gpu: Device, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the threshold, with half precision, large tiles and page-locked memory."""
    block = planted(device, 30_000, 256, seed=1)
    expected = near_components(Features(device, [block]), 0.1)
    assert (near_components(Features(gpu, [block]), 0.1) == expected).all()
    nearest = nearest_rows(Features(device, [block[:9000]]), Features(device, [block[9000:]]), 0.1)
    with open_device("cuda"):  # must not change the stream of the outer device
        pass
    there = nearest_rows(Features(gpu, [block[:9000]]), Features(gpu, [block[9000:]]), 0.1)
    assert (there[0] == nearest[0]).all()
    monkeypatch.setattr(gpu.xp.cuda.runtime, "memGetInfo", lambda: (0, 1))
    features = Features(gpu, [block])
    assert isinstance(features.blocks[0], np.ndarray) and (near_components(features, 0.1) == expected).all()
