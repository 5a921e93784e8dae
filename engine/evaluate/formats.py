"""Readers of data sets, one for each layout in which they are published."""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from danqing.engine.core.errors import DanqingError
from danqing.engine.evaluate.datasets import CLASSIFICATION, RETRIEVAL, Dataset, Example, Text
from danqing.engine.sources import Layout, find_shards, open_shard
from danqing.engine.sources.tar import read_members
from danqing.engine.sources.webdataset import samples_of

DIGIT_NAMES = tuple("零一二三四五六七八九")
FASHION_NAMES = ("T恤", "裤子", "套头毛衣", "连衣裙", "外套", "凉鞋", "衬衫", "运动鞋", "手提包", "短靴")
"""Of Fashion-MNIST's classes, in their order."""
CAPTION_LINE = re.compile(rb"[^\s#]+(#\S+ |(#\S+)?\t)\S")
"""Start of a line `picture⇥caption`, `id#0⇥caption` or `id#zhm#0 caption`."""
MAX_LINE_BYTES = 4096
IMAGENET_CLASSES = 1000
"""Of a folder without names that has so many classes, they are ImageNet's, which the engine names."""
WITH_ANSWERS = Layout(caption_keys=("txt", "cls", "npy"))
"""The members of clip-benchmark's tars."""
PICTURE_FOLDERS = (".", "images", "imgs", "pictures")
"""Where the pictures of a table of captions can be, relative to the table."""


def folder_name(path: Path) -> str:
    return path.resolve().name


def _decode(content: bytes, where: str) -> str:
    """Decodes UTF-8 with or without a byte order mark.

    Raises:
        DanqingError: names `where` and the first line that is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = problem.object.count(b"\n", 0, problem.start) + 1
        raise DanqingError(f"{where} line {line}: is not UTF-8; convert the file") from None


def _lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file that are not empty, each with `FILE line N`.

    Raises:
        DanqingError: the file is missing or not UTF-8.
    """
    try:
        content = _decode(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise DanqingError(f"{path}: is missing") from None
    return [(line.strip(), f"{path} line {n}") for n, line in enumerate(content.split("\n"), 1) if line.strip()]


def _names_in(path: Path, count: int | None, what: str) -> tuple[str, ...]:
    """The names of classes in a file, line k of class k; `count` of them."""
    lines = _lines(path)
    if count is not None and len(lines) != count:
        raise DanqingError(f"{path}: {len(lines)} names for {count} {what}; line k must name class k, the first is 0")
    if not lines:
        raise DanqingError(f"{path}: is empty; line k must name class k")
    return tuple(line for line, _ in lines)


def read_templates(path: Path) -> tuple[str, ...]:
    """Reads templates, one a line, with `{c}` or `{}` where the class's name belongs.

    Raises:
        DanqingError: a line has no place for the name; names it.
    """
    lines = [(line.replace("{}", "{c}"), where) for line, where in _lines(path)]
    if not lines:
        raise DanqingError(f"{path}: no template; write one a line, for example 一张{{c}}的照片")
    for line, where in lines:
        if "{c}" not in line:
            raise DanqingError(f"{where}: a template needs {{c}}, where the name of the class belongs: 一张{{c}}的照片")
    return tuple(line for line, _ in lines)


def _is_picture(path: Path) -> bool:
    return path.suffix[1:].lower() in WITH_ANSWERS.image_extensions


def _class_folders(path: Path) -> list[Path]:
    """The folders of a split, one a class: by number if all names are whole numbers, else by name.

    Raises:
        DanqingError: there is none, or the numbers are not 0, 1, 2, … without gaps.
    """
    folders = sorted(entry for entry in path.glob("*") if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DanqingError(f"{path}: no folder of pictures for each class, test/000/ …")
    if not all(re.fullmatch("[0-9]+", folder.name) for folder in folders):
        return folders
    by_number = {int(folder.name): folder for folder in folders}
    if missing := set(range(len(folders))) - by_number.keys():
        raise DanqingError(
            f"{path}: the number of a folder is its class, so {len(folders)} folders must be 0 to {len(folders) - 1}, "
            f"each once; {min(missing)} is missing"
        )
    return [by_number[number] for number in range(len(folders))]


def elevater(path: Path) -> Dataset:
    """ELEVATER as Chinese-CLIP packs it: label_cn.txt, test/000/*.jpg; ImageNet as test/n01440764/*.JPEG."""
    folders = _class_folders(path / "test")
    names = path / "label_cn.txt"
    if names.is_file():
        classes = _names_in(names, len(folders), "class folders in test/")
    elif len(folders) == IMAGENET_CLASSES:
        from danqing.trt_models.export.imagenet_names import class_names

        classes = tuple(chinese for _, chinese in class_names())
    else:
        raise DanqingError(f"{names}: is missing; it names the {len(folders)} classes of test/, one a line")

    def examples() -> Iterator[Example]:
        of_class = [sorted(file for file in folder.iterdir() if _is_picture(file)) for folder in folders]
        for place in range(max(map(len, of_class), default=0)):
            for label, files in enumerate(of_class):
                if place < len(files):
                    file = files[place]
                    yield Example(f"{folders[label].name}/{file.name}", file.read_bytes(), str(file), (label,))

    return Dataset(folder_name(path), CLASSIFICATION, examples, classes)


def clip_benchmark(path: Path) -> Dataset:
    """clip-benchmark's WebDataset: test/0.tar with .cls, .npy or .txt beside each picture."""
    kind = path / "dataset_type.txt"
    retrieval = kind.is_file() and "retrieval" in _decode(kind.read_bytes(), str(kind))
    (count, where), *_ = _lines(path / "test" / "nshards.txt") or [("", str(path / "test" / "nshards.txt"))]
    if not count.isdecimal():
        raise DanqingError(f"{where}: must be the number of shards, test/0.tar …")
    shards = [path / "test" / f"{number}.tar" for number in range(int(count))]
    for shard in shards:
        if not shard.is_file():
            raise DanqingError(f"{shard}: is missing; test/nshards.txt says that there are {count} shards")
    if retrieval:
        return Dataset(folder_name(path), RETRIEVAL, lambda: _tar_examples(shards, 0))
    classes = _names_in(path / "classnames.txt", None, "")
    own = path / "zeroshot_classification_templates.txt"
    templates = read_templates(own) if own.is_file() else ()
    several = any("npy" in parts for _, parts in islice(_tar_samples(shards), 1))
    return Dataset(
        folder_name(path), CLASSIFICATION, lambda: _tar_examples(shards, len(classes)), classes, several, templates
    )


def _tar_samples(shards: Iterable[Path]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields `SHARD KEY` and the parts of each sample: extension → content."""
    for shard in shards:
        try:
            index = read_members(shard)
        except tarfile.TarError as problem:
            raise DanqingError(f"{shard}: is damaged: {problem}; get it again") from None
        if index.damage:
            raise DanqingError(f"{shard}: is damaged: {': '.join(index.damage[0])}; get it again")
        with shard.open("rb") as file:
            for key, places in samples_of(index.members, WITH_ANSWERS):
                parts = {name: os.pread(file.fileno(), size, offset) for name, (offset, size) in places.items()}
                yield f"{shard} {key}", parts


def _tar_examples(shards: list[Path], classes: int) -> Iterator[Example]:
    for where, parts in _tar_samples(shards):
        picture = next((parts[name] for name in WITH_ANSWERS.image_extensions if name in parts), b"")
        if not classes:
            captions = _decode(parts.get("txt", b""), f"{where}.txt").split("\n")
            yield Example(where, picture, where, captions=tuple(text.strip() for text in captions if text.strip()))
        else:
            yield Example(where, picture, where, _labels(parts, classes, where))


def _labels(parts: dict[str, bytes], classes: int, where: str) -> tuple[int, ...]:
    try:
        if "npy" in parts:
            hot = np.load(io.BytesIO(parts["npy"]), allow_pickle=False).reshape(-1)
            wrong = hot[~((hot == 0) | (hot == 1))] if hot.dtype.kind in "biuf" else hot
            if wrong.size:
                raise DanqingError(f"{where}: its .npy must hold 0 or 1 for each class; it holds {wrong[0]}")
            labels = tuple(np.flatnonzero(hot).tolist()) if len(hot) == classes else (-1,)
        else:
            labels = (int(parts["cls"]),)
    except (KeyError, ValueError, EOFError):
        raise DanqingError(f"{where}: needs its class beside it: .cls with a number, or .npy with {classes}") from None
    if any(not 0 <= label < classes for label in labels):
        raise DanqingError(f"{where}: its class is none of the {classes} in classnames.txt, which count from 0")
    return labels


def has_answers(texts: Path) -> bool:
    """Whether a split names the pictures of its texts; MUGE's test split does not."""
    return any(text.pictures for text in _texts(texts))


def _texts(path: Path) -> list[Text]:
    found = []
    seen: dict[str, str] = {}
    for line, where in _lines(path):
        try:
            record = json.loads(line)
            text, ids = record["text"], record["image_ids"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = ids = None
        if not (isinstance(text, str) and text.strip() and isinstance(ids, list)):
            raise DanqingError(f'{where}: write {{"text_id": 1, "text": "…", "image_ids": [1, 2]}}')
        if "text_id" in record:
            _note_id(seen, f"text_id {record['text_id']}", where)
        found.append(Text(text, tuple(map(str, ids)), where))
    return found


def _note_id(seen: dict[str, str], name: str, where: str) -> None:
    """Adds a name and its place to `seen`.

    Raises:
        DanqingError: it is there already.
    """
    if name in seen:
        raise DanqingError(f"{where}: {name} is also in {seen[name]}; an id must be there once")
    seen[name] = where


def chinese_clip(path: Path) -> Dataset:
    """Chinese-CLIP's retrieval: SPLIT_texts.jsonl, SPLIT_imgs.tsv with `id⇥base64`."""
    texts = tuple(_texts(path))
    if not any(text.pictures for text in texts):
        raise DanqingError(f"{path}: no text has image_ids, so nothing is right; use the split valid or test with them")
    table = path.with_name(path.name.replace("_texts.jsonl", "_imgs.tsv"))
    if not table.is_file():
        raise DanqingError(f"{table}: is missing; it holds the pictures of {path.name}, id and base64 a line")

    def examples() -> Iterator[Example]:
        seen: dict[str, str] = {}
        with table.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                key, tab, data = line.strip().partition(b"\t")
                where = f"{table} line {number}"
                try:
                    picture = base64.b64decode(data.translate(bytes.maketrans(b"-_", b"+/")), validate=True)
                except binascii.Error:
                    tab = b""
                if not tab:
                    raise DanqingError(f"{where}: must be an id, a tab, and the picture in base64")
                try:
                    name = key.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise DanqingError(f"{where}: the id is not UTF-8; convert the file") from None
                _note_id(seen, f"picture {name}", where)
                yield Example(name, picture, where)

    name = path.resolve().parent.name
    return Dataset(name, RETRIEVAL, examples, texts=texts)


def captions(path: Path) -> Dataset:
    """A table of captions: `picture⇥caption`, `id#n⇥caption` or `id#zhm#n caption`; pictures beside it."""
    captions: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for line, where in _lines(path):
        name, tab, caption = line.partition("\t")
        if not tab:
            name, _, caption = line.partition(" ")
        picture, sign, _ = name.partition("#")
        if not caption.strip() or not (tab or sign):
            raise DanqingError(f"{where}: must be a picture's file, a tab and its caption")
        captions.setdefault(picture, []).append(caption.strip())
        places.setdefault(picture, where)
    if not captions:
        raise DanqingError(f"{path}: is empty; each line is a picture's file, a tab and its caption")

    def examples() -> Iterator[Example]:
        for name, texts in captions.items():
            file = _picture_file(path.parent, name, places[name])
            yield Example(name, file.read_bytes(), str(file), captions=tuple(texts))

    return Dataset(path.resolve().parent.name, RETRIEVAL, examples)


def _picture_file(folder: Path, name: str, where: str) -> Path:
    for place in PICTURE_FOLDERS:
        for end in ("", ".jpg", ".png"):
            if (file := folder / place / f"{name}{end}").is_file():
                return file
    raise DanqingError(f"{where}: no picture {name}; put it into {folder} or {folder / PICTURE_FOLDERS[1]}")


def idx(path: Path) -> Dataset:
    """MNIST's format, as Debian's dataset-fashion-mnist has it; test pictures if there are any."""
    files = sorted(path.glob("*-images-idx3-ubyte*"))
    chosen = next((file for file in files if file.name.startswith("t10k")), files[0])
    pictures = _idx_array(chosen)
    labels = _idx_array(chosen.with_name(chosen.name.replace("-images-idx3", "-labels-idx1")))
    if len(labels) != len(pictures):
        raise DanqingError(f"{chosen}: {len(pictures)} pictures and {len(labels)} labels; get both files again")
    own = path / "label_cn.txt"
    fashion = "fashion" in folder_name(path).lower()
    count = int(labels.max(initial=0)) + 1
    classes = _names_in(own, None, "") if own.is_file() else FASHION_NAMES if fashion else DIGIT_NAMES
    if count > len(classes):
        raise DanqingError(f"{own}: {len(classes)} names, and the labels need {count}; line k names class k")
    # Shops photograph clothes on white; Fashion-MNIST holds them inverted.
    return grey(folder_name(path), 255 - pictures if fashion else pictures, labels, classes, str(chosen))


def _idx_array(path: Path) -> np.ndarray:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        sides = np.frombuffer(data, ">i4", data[3], 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sides)
    except FileNotFoundError:
        raise DanqingError(f"{path}: is missing") from None
    except (OSError, EOFError, ValueError, IndexError):
        raise DanqingError(f"{path}: is damaged or not in the format of MNIST; get it again") from None


def is_captions(path: Path) -> bool:
    """Whether a text file begins like a table of captions; a README does not."""
    with path.open("rb") as file:
        return CAPTION_LINE.match(file.readline(MAX_LINE_BYTES).removeprefix(b"\xef\xbb\xbf")) is not None


def grey(name: str, pictures: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], where: str) -> Dataset:
    """A data set of grey pictures, uint8 (n, height, width), which are encoded as PNG when they are read."""

    def examples() -> Iterator[Example]:
        for number, (pixels, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            yield Example(str(number), buffer.getvalue(), f"{where} picture {number}", (label,))

    return Dataset(name, CLASSIFICATION, examples, classes)


def pairs(name: str, inputs: list[str]) -> Dataset:
    """Shards of pairs: a picture is the right one of its caption, and of no other."""
    layout = Layout()
    shards = find_shards(inputs, layout)

    def examples() -> Iterator[Example]:
        for shard in shards:
            for sample in open_shard(shard, layout):
                where = f"{shard.path} {sample.key}"
                yield Example(where, sample.image, where, captions=(sample.caption,) if sample.caption.strip() else ())

    return Dataset(name, RETRIEVAL, examples)
