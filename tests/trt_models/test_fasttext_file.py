"""Reading fastText's files: equal to fastText for every kind of matrix; damaged files are errors."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.strings import Strings
from danqing.engine.stages.characters import character_classes
from danqing.kernels.text.languages import LABELS, WHOLE, predict
from danqing.trt_models.run.fasttext_file import read_classifier

WORDS, LABEL_COUNTS = ["</s>", "de", "猫", "il"], [900, 500, 40, 30, 30, 2, 1]
DIMENSIONS, BUCKETS = 5, 40
LINES = ["", " ", "猫", "de 猫 il gatto", "gatto</s>", "a </s> b", "__label__en __label__zz casa", "é\x00à", "长猫猫"]


def quantiser(draw: Any, size: int, width: int) -> bytes:
    parts = -(-size // width)
    centroids = draw.normal(size=size * 256).astype("<f4")
    return struct.pack("<4i", size, parts, width, size - (parts - 1) * width) + centroids.tobytes()


def matrix(draw: Any, rows: int, quantised: bool, norms: bool) -> bytes:
    if not quantised:
        return struct.pack("<2q", rows, DIMENSIONS) + draw.normal(size=rows * DIMENSIONS).astype("<f4").tobytes()
    codes = draw.integers(0, 256, rows * 3, np.uint8).tobytes()
    data = struct.pack("<B2qi", norms, rows, DIMENSIONS, len(codes)) + codes + quantiser(draw, DIMENSIONS, 2)
    return data + draw.bytes(rows) + quantiser(draw, 1, 1) if norms else data


def small_model(quantised: bool = True, quantised_output: bool = True, norms: bool = True, shortest: int = 1) -> bytes:
    """Makes a file with a few words, labels and buckets. A quantised one keeps every third bucket."""
    draw = np.random.default_rng(5)
    settings = (DIMENSIONS, 5, 5, 1, 5, 1, 1, 3, BUCKETS, shortest, 3, 100, 1e-4)
    data = struct.pack("<2i12id", 793712314, 12, *settings)
    kept = draw.permutation(BUCKETS)[: BUCKETS // 3] if quantised else None
    sizes = len(WORDS) + len(LABEL_COUNTS), len(WORDS), len(LABEL_COUNTS), 999, -1 if kept is None else len(kept)
    data += struct.pack("<3i2q", *sizes)
    for word in WORDS:
        data += word.encode() + struct.pack("<xqb", 7, 0)
    for number, count in enumerate(LABEL_COUNTS):
        data += f"__label__{'abcdefg'[number]}".encode() + struct.pack("<xqb", count, 1)
    for row, bucket in enumerate([] if kept is None else kept.tolist()):
        data += struct.pack("<2i", bucket, row)
    rows = len(WORDS) + (BUCKETS if kept is None else len(kept))
    data += struct.pack("<B", quantised) + matrix(draw, rows, quantised, norms)
    quantised_output = quantised and quantised_output
    return data + struct.pack("<B", quantised_output) + matrix(draw, len(LABEL_COUNTS), quantised_output, norms)


def predictions(device: Device, path: Path) -> list[dict[str, float]]:
    model, names = read_classifier(path)
    parts = np.full(len(LINES), WHOLE, np.uint8)
    labels, probabilities = predict(device, Strings.of(LINES), parts, model, character_classes())
    return [
        {names[label]: share for label, share in zip(row, shares, strict=True) if label >= 0}
        for row, shares in zip(labels.tolist(), probabilities.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"norms": False},
        {"quantised_output": False, "shortest": 2},
        {"quantised": False},
    ],
)
def test_labels_and_probabilities_equal_fasttext(tmp_path: Path, device: Device, kind: dict[str, Any]) -> None:
    path = tmp_path / "small.ftz"
    path.write_bytes(small_model(**kind))
    peer = fasttext.load_model(str(path))
    for line, found in zip(LINES, predictions(device, path), strict=True):
        labels, shares = peer.predict(line or " ", LABELS, 0.01)
        expected = {label.removeprefix("__label__"): share for label, share in zip(labels, shares, strict=True)}
        assert list(found) == list(expected) and found == pytest.approx(expected, abs=1e-5)


def test_damaged_files_are_errors_that_name_the_file(tmp_path: Path, device: Device) -> None:
    path, whole = tmp_path / "small.ftz", small_model()
    with pytest.raises(DanqingError, match=r"small\.ftz: cannot read"):
        read_classifier(path)
    for size in [*range(0, 400, 7), *range(400, len(whole), 701)]:
        path.write_bytes(whole[:size])
        with pytest.raises(DanqingError, match=r"small\.ftz: not a fastText .*it is cut short"):
            read_classifier(path)
    chance, errors = random.Random(3), 0
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(400)] = chance.choice([0, 1, 255, 128, chance.randrange(256)])
        path.write_bytes(damaged)
        try:
            predictions(device, path)  # a file with other words or counts is a model, too
        except DanqingError as problem:
            assert str(path) in str(problem)
            errors += 1
    assert errors > 200


@pytest.mark.parametrize(
    ("at", "layout", "value", "message"),
    [
        (0, "<i", 7, "begins with other bytes"),
        (4, "<i", 11, "version 11"),
        (8, "<i", 1 << 30, "dimensions"),
        (28, "<i", 2, "n-grams of words"),
        (32, "<i", 3, "hierarchical softmax"),
        (40, "<i", 1 << 30, "out of range"),
        (64, "<i", -1, "do not add up"),
        (92, "<4s", b"</t>", "no end of a line"),
    ],
)
def test_models_of_other_kinds_are_errors(tmp_path: Path, at: int, layout: str, value: Any, message: str) -> None:
    path, data = tmp_path / "small.ftz", bytearray(small_model())
    struct.pack_into(layout, data, at, value)
    path.write_bytes(data)
    with pytest.raises(DanqingError, match=message):
        read_classifier(path)
