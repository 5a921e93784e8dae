"""Topics of kept captions: known themes are found, with their words, and shown in the report."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pyarrow.parquet as pq
import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.phases import curate, topics_of
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.report.html import write_report
from danqing.engine.report.topics import Topics, cluster, draw_sample, open_libraries, topic_words
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.write.output import read_verdicts
from tests.conftest import picture

RECIPE = """
recipe: about
models:
  text_safety: jionlp-pornography
  caption_safety: jionlp-advertising
  text_embedding: use-multilingual
criteria:
  words: {min: 3}
"""

THEMES = {
    "猫": ("一只橘猫", "小猫", "那只黑猫", "两只猫咪", "白色的猫"),
    "火车": ("高铁列车", "蒸汽火车", "绿皮火车", "这列火车", "货运火车"),
    "面条": ("一碗牛肉面条", "手工面条", "红烧牛肉面", "重庆小面", "凉拌面条"),
}
DOINGS = {
    "猫": ("在窗台上睡觉", "追着毛线球玩耍", "趴在沙发上打盹", "抓老鼠", "舔自己的爪子", "躲在纸箱里"),
    "火车": ("驶过铁路大桥", "停靠在火车站台", "穿过隧道", "沿着铁轨前进", "在车站等候乘客", "开往北京的车厢"),
    "面条": ("配上香菜和辣椒", "热气腾腾的汤底", "中午在餐馆吃", "用筷子夹起来", "加了鸡蛋和青菜", "味道很鲜美"),
}


def captions() -> list[tuple[str, str]]:
    """Pairs of theme and caption, in alternating order of themes."""
    by_theme = [
        [(theme, f"{what}{doing}") for what, doing in itertools.product(THEMES[theme], DOINGS[theme])]
        for theme in THEMES
    ]
    return [pair for row in zip(*by_theme, strict=True) for pair in row]


@pytest.fixture(scope="module", autouse=True)
def umap() -> Iterator[None]:
    """Runs PyNNDescent and the slowest compiled functions of UMAP in Python: compilation takes a minute, they a second.

    UMAP searches so few rows exactly, without PyNNDescent.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", 1)
        importlib.import_module("pynndescent")
    module = importlib.import_module("umap.umap_")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fast_knn_indices", "smooth_knn_dist", "compute_membership_strengths"):
            patch.setattr(module, name, getattr(module, name).py_func)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("topics")
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, (theme, caption) in enumerate([*captions(), ("", "短")]):
            record = json.dumps({"theme": theme}).encode()
            for end, content in (("jpg", picture(number, (64, 48))), ("txt", caption.encode()), ("json", record)):
                member = tarfile.TarInfo(f"{number:04d}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (folder / "about.yaml").write_text(RECIPE)
    return curate([str(folder / "00000.tar")], folder / "run", load_recipe(folder / "about.yaml"), Settings())[0]


def test_known_themes_are_found_and_shown(run: Run) -> None:
    found = topics_of(run, 1000, 12)
    table = pq.read_table(run.folder / "topics.parquet")
    scores = pq.read_table(run.scores_path(0), columns=["uid", "theme"]).to_pylist()
    theme_of = {record["uid"]: record["theme"] for record in scores}
    assert (found.kept, found.sample) == (90, 90) and len(table) == 90
    assert found == Topics.of(run, read_verdicts(run))
    atlas = pq.read_table(run.folder / "atlas.parquet")
    assert atlas.column_names == ["uid", "caption", "x", "y", "topic"]
    assert atlas.select(["uid", "x", "y"]) == table.select(["uid", "x", "y"])
    captions_of = {row["uid"]: row["caption"] for row in pq.read_table(run.scores_path(0)).to_pylist()}
    for row, number in zip(atlas.to_pylist(), table["topic"].to_pylist(), strict=True):
        assert row["caption"] == captions_of[row["uid"]]
        name = f"{number}: {' '.join(found.topics[number].words[:4])}" if number >= 0 else "none"
        assert row["topic"] == name
    seen = set()
    for number, topic in enumerate(found.topics):
        members = table.filter(np.asarray(table["topic"]) == number)["uid"].to_pylist()
        themes = [theme_of[uid] for uid in members]
        theme = max(set(themes), key=themes.count)
        assert themes.count(theme) >= 0.9 * len(themes) and topic.captions == len(members) >= 12
        assert any(theme[0] in word for word in topic.words), topic.words
        assert set(topic.examples) <= set(members)
        seen.add(theme)
    assert seen == set(THEMES) and found.loose < 20
    sizes = [topic.captions for topic in found.topics]
    assert sizes == sorted(sizes, reverse=True)
    page = (run.folder / "report.html").read_text()
    assert "<h2>Topics</h2>" in page and page.count("<circle") == 90
    assert all(f">topic {n}: {' '.join(t.words)} ({t.captions})</summary>" in page for n, t in enumerate(found.topics))
    before = (run.folder / "topics.parquet").read_bytes()
    topics_of(run, 1000, 12)
    assert (run.folder / "topics.parquet").read_bytes() == before

    topics = (run.folder / "topics.json").read_text()
    (run.folder / "topics.json").write_text(topics.replace('"verdicts": "', '"verdicts": "other'))
    try:
        assert Topics.of(run, read_verdicts(run)) is None  # topics of other verdicts are not shown
        write_report(run)
        assert "<h2>Topics</h2>" not in (run.folder / "report.html").read_text()
    finally:
        (run.folder / "topics.json").write_text(topics)


def test_the_sample_of_kept_pairs_is_the_same_every_time(run: Run) -> None:
    kept, everything = draw_sample(run, 10**9)
    assert kept == len(everything) == 90 and "短" not in everything["caption"].to_pylist()
    _, some = draw_sample(run, 30)
    assert 15 <= len(some) <= 45 and some == draw_sample(run, 30)[1]
    assert set(some["uid"].to_pylist()) < set(everything["uid"].to_pylist())


def test_words_are_weighed_by_class_based_tf_idf() -> None:
    # 猫 is in both topics; 火车 and 铁路 are only in the second; stop words and particles do not count.
    texts, labels = ["猫与老鼠", "猫的老鼠", "火车铁路火车", "火车上的猫"], np.array([0, 0, 1, 1])
    counts = {0: {"猫": 2, "老鼠": 2}, 1: {"火车": 3, "铁路": 1, "猫": 1}}
    average, total = 9 / 2, {"猫": 3, "老鼠": 2, "火车": 3, "铁路": 1}
    expected = [
        tuple(sorted(words, key=lambda w: -words[w] * np.log(1 + average / total[w]))) for words in counts.values()
    ]
    assert topic_words(texts, labels) == expected
    assert topic_words(texts, np.array([0, -1, -1, -1]))[0] == ("老鼠", "猫")
    assert topic_words(["，", "。"], np.array([0, 0])) == [()]


def test_errors_say_what_to_do(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DanqingError, match=r"captions are too few for topics; 50 are needed"):
        topics_of(run, 10, None)
    without = replace(run.recipe, models={})
    monkeypatch.setattr(Run, "recipe", without)
    with pytest.raises(DanqingError, match=r"need a model for text_embedding: add models.text_embedding"):
        topics_of(run, 1000, None)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(DanqingError, match=r"topics need another package: .*umap.*danqing-engine\[topics\]"):
        topics_of(run, 1000, None)


def test_a_gpu_uses_cuml(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls are those of cuML 26.10: keyword arguments, host memory in and out."""
    vectors = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)

    class Umap:
        def __init__(
            self, *, n_neighbors: int, n_components: int, min_dist: float, metric: str, random_state: int
        ) -> None:
            assert metric == "cosine" and n_components == 5

        def fit_transform(self, x: Any) -> Any:
            assert isinstance(x, np.ndarray)
            return x[:, :5]

    class Hdbscan:
        def __init__(self, *, min_cluster_size: int) -> None:
            assert min_cluster_size == 2

        def fit_predict(self, x: Any) -> Any:
            return np.array([1, 0, -1, 0, 0, 1], np.int32)

    gpu = Device("cuda", 1, None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cuml.manifold", None)
    with pytest.raises(DanqingError, match=r"danqing-engine\[cuda\]"):
        open_libraries(gpu)
    monkeypatch.setitem(sys.modules, "cuml", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuml.manifold", SimpleNamespace(UMAP=Umap))
    monkeypatch.setitem(sys.modules, "cuml.cluster", SimpleNamespace(HDBSCAN=Hdbscan))
    reduced, labels = cluster(vectors, 2, open_libraries(gpu))
    assert (reduced == vectors[:, :5]).all() and labels.tolist() == [1, 0, -1, 0, 0, 1]
