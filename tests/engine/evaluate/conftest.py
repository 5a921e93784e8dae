"""Pictures of one colour, towers that know colours, and data sets of them in every layout."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"红": (220, 20, 20), "绿": (20, 220, 20), "蓝": (20, 20, 220)}


def coloured(name: str, side: int = 8) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), COLOURS[name]).save(buffer, "PNG")
    return buffer.getvalue()


class ColourTowers:
    """The mean colour of a picture; the mean of the colours that a text names."""

    name = "colours"

    def images(self, pictures: Sequence[bytes]) -> np.ndarray:
        return np.array([self._image(picture) for picture in pictures], np.float32).reshape(-1, 3)

    def _image(self, picture: bytes) -> np.ndarray:
        try:
            mean = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).mean((0, 1))
        except OSError:
            return np.zeros(3)
        return mean / np.linalg.norm(mean)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        found = np.array([[text.count(name) for name in COLOURS] for text in texts], np.float32) + 0.01
        return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture
def towers() -> ColourTowers:
    return ColourTowers()


def elevater(folder: Path) -> Path:
    """Three classes with two pictures each; the second picture of 000 has the colour of 001."""
    for label, names in enumerate(("红绿", "绿绿", "蓝蓝")):
        (folder / "test" / f"{label:03}").mkdir(parents=True)
        for number, name in enumerate(names):
            (folder / "test" / f"{label:03}" / f"{number}.png").write_bytes(coloured(name))
    (folder / "label_cn.txt").write_text("红色\n绿色\n蓝色\n", encoding="utf-8")
    return folder


def tar(path: Path, samples: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def clip_benchmark(folder: Path, answers: Sequence[dict[str, bytes]]) -> Path:
    """Red, green and blue, with `answers` (extension → content) beside them, in two shards."""
    pictures = [{"png": coloured(name)} | beside for name, beside in zip(COLOURS, answers, strict=True)]
    for shard, numbers in enumerate(([0, 1], [2])):
        parts = {f"s{n}.{end}": content for n in numbers for end, content in pictures[n].items()}
        tar(folder / "test" / f"{shard}.tar", parts)
    (folder / "test" / "nshards.txt").write_text("2")
    (folder / "classnames.txt").write_text("red 红\ngreen 绿\nblue 蓝\n", encoding="utf-8")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of {c}\n{c}\n")
    return folder


def npy(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


def chinese_clip(folder: Path, texts: Sequence[tuple[str, list[int]]], split: str = "test") -> Path:
    """Pictures 1 red, 2 green, 3 blue, and texts with the ids of their pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text_id": n, "text": text, "image_ids": ids}) for n, (text, ids) in enumerate(texts)]
    (folder / f"{split}_texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = [f"{n}\t{base64.urlsafe_b64encode(coloured(name)).decode()}\n" for n, name in enumerate(COLOURS, 1)]
    (folder / f"{split}_imgs.tsv").write_text("".join(rows))
    return folder


def captions(folder: Path, line: Callable[[str, int, str], str], name: str = "captions.tsv") -> Path:
    """Two captions for each of three pictures in images/."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for number, colour in enumerate(COLOURS):
        (folder / "images" / f"p{number}.jpg").write_bytes(coloured(colour))
        lines += [line(f"p{number}", n, f"{colour}色的图{n}") for n in range(2)]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
