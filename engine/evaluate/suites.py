"""Suites: what `--suite` names, a built-in data set or files in one of the known layouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.storage import path_of
from danqing.engine.evaluate import formats
from danqing.engine.evaluate.datasets import RETRIEVAL, Dataset, Example, Suite

DEMO = resources.files("danqing.engine") / "demo"
DIGITS_FOR_TRAINING = 1400
"""Of scikit-learn's 1,797 digits, in the order of a permutation; the suite `digits` has the others."""
LAYOUTS = (
    "a folder with label_cn.txt and test/000/…, classnames.txt and test/0.tar, SPLIT_texts.jsonl and SPLIT_imgs.tsv, "
    "*-images-idx3-ubyte, or one table of captions (.tsv, .txt); a run; shards; or a folder of such folders"
)


def open_suite(*names: str) -> Suite:
    """Opens suites as one; no picture is read yet.

    Args:
        names: `demo`, `digits`, or paths: see `LAYOUTS`. A file chooses among several in a folder: `valid_texts.jsonl`.

    Raises:
        DanqingError: there is nothing, nothing of a known layout, a file of it is wrong (names file and line), or two
            data sets have one name.
    """
    suites = [_open(name) for name in names]
    datasets = tuple(dataset for suite in suites for dataset in suite.datasets)
    counts = Counter(dataset.name for dataset in datasets)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise DanqingError(f"--suite: two data sets are called {', '.join(twice)}; rename the folder of one")
    return Suite(" ".join(suite.name for suite in suites), datasets, sum((suite.skipped for suite in suites), ()))


def _open(text: str) -> Suite:
    if text in BUILTIN:
        return Suite(text, (BUILTIN[text](),))
    path = path_of(text)
    if not path.is_dir():
        return Suite(path.stem, (_of_file(path, text),))
    if found := _in_folder(path):
        return Suite(found.name, (found,))
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    inside = {folder.name: _in_folder(folder) for folder in folders}
    datasets = tuple(dataset for dataset in inside.values() if dataset)
    if not datasets:
        raise DanqingError(f"{path}: no data set of a known layout; give {', or '.join(BUILTIN)}, {LAYOUTS}")
    return Suite(formats.folder_name(path), datasets, tuple(name for name, dataset in inside.items() if not dataset))


def _of_file(path: Path, text: str) -> Dataset:
    if path.name.endswith("_texts.jsonl"):
        return formats.chinese_clip(path)
    if path.suffix in (".tsv", ".txt") and path.is_file():
        return formats.captions(path)
    if not path.is_file() and not any(sign in text for sign in "*?[{"):
        raise DanqingError(f"--suite {text}: no such file or folder; give {', '.join(BUILTIN)}, or {LAYOUTS}")
    return formats.pairs(path.stem, [text])


def _in_folder(path: Path) -> Dataset | None:
    """The data set in a folder; None if it has no known layout."""
    names = sorted(entry.name for entry in path.iterdir())
    if "run.json" in names:
        if "shards" not in names:
            raise DanqingError(f"{path}: the run has no shards/ yet; run `danqing write {path}` first")
        return formats.pairs(formats.folder_name(path), [str(path / "shards")])
    if "classnames.txt" in names or (path / "test" / "nshards.txt").is_file():
        return formats.clip_benchmark(path)
    if any("-images-idx3-ubyte" in name for name in names):
        return formats.idx(path)
    if "label_cn.txt" in names or (path / "test").is_dir():
        return formats.elevater(path)
    if split := [name for name in names if name.endswith("_texts.jsonl")]:
        return formats.chinese_clip(
            path / max(split, key=lambda name: (formats.has_answers(path / name), name == "test_texts.jsonl"))
        )
    if any(name.endswith((".tar", ".parquet")) for name in names):
        return formats.pairs(formats.folder_name(path), [str(path)])
    tables = [name for name in names if name.endswith((".tsv", ".txt")) and formats.is_captions(path / name)]
    if len(tables) > 1:
        raise DanqingError(f"{path}: several tables of captions; name one: --suite {path / tables[0]}")
    return formats.captions(path / tables[0]) if tables else None


def read_digits(training: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Reads scikit-learn's handwritten digits, 8 × 8 pixels, each pixel enlarged to 4 × 4, white on black.

    Args:
        training: the first `DIGITS_FOR_TRAINING` of a permutation instead of the others.

    Returns:
        uint8 (n, 32, 32) pictures, int64 (n,) digits.

    Raises:
        DanqingError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DanqingError("--suite digits: pip install scikit-learn") from None
    found: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    rows = order[:DIGITS_FOR_TRAINING] if training else order[DIGITS_FOR_TRAINING:]
    pixels = np.rint(found.images[rows] * (255 / 16)).astype(np.uint8)
    return np.kron(pixels, np.ones((1, 4, 4), np.uint8)), found.target[rows]


def _digits() -> Dataset:
    return formats.grey("digits", *read_digits(), formats.DIGIT_NAMES, "scikit-learn's digits")


def _demo() -> Dataset:
    """The demo's photographs with their captions."""

    def examples() -> Iterator[Example]:
        for record in yaml.safe_load((DEMO / "photos.yaml").read_text(encoding="utf-8")):
            file = DEMO / "photos" / record["file"]
            yield Example(record["file"], file.read_bytes(), str(file), captions=tuple(record["captions"]))

    return Dataset("demo", RETRIEVAL, examples)


BUILTIN: dict[str, Callable[[], Dataset]] = {"demo": _demo, "digits": _digits}
"""Suites that need no download."""
