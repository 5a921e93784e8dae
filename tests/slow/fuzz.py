"""Reads broken files in child processes: a broken file must not cost more than its own row.

    python -m tests.slow.fuzz --files 20000 --seed 0 --keep /tmp/broken

Valid files of every kind (pictures, tars, Parquet files, CSV and JSONL tables) are cut, spliced, flipped and
overwritten. Broken pictures are put into a tar, with a sound picture at every eighth place. A child process reads each
shard as SCORE does: source, header, decoding, statistics. The program counts, and fails if there is one:

- shards that kill the child, that take longer than `SHARD_SECONDS`, or that raise anything but a `DanqingError`;
- untouched rows whose score differs from that in an undamaged shard, and untouched rows that lie before the damage in
  a tar or a table and are missing;
- errors without words.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import multiprocessing as mp
import os
import random
import resource
import sys
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from PIL import Image, features

from danqing.engine.core.device import Device, open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.memory import Memory
from danqing.engine.score.loop import batches_of
from danqing.engine.sources import Layout, find_shards, open_shard
from danqing.engine.stages.base import Context
from danqing.engine.stages.decode import Decode
from danqing.engine.stages.header import Header
from danqing.engine.stages.pixels import PixelStatistics
from danqing.profiling.bench.gpu.material import demo_photographs
from danqing.trt_models.model_set import ModelSet

SHARD_SECONDS = 60
"""Time limit of a shard of 64 small pictures, which usually takes 0.1 s."""
MAX_PIXELS = 4_000_000
ADDRESS_SPACE_BYTES = 6 << 30
BATCH, SOUND_EVERY = 64, 8
CONTAINER_SHARE = 0.25
"""Share of the broken files that are tars and tables."""

MEMORY_FOLDER = Path("/dev/shm")

Row = tuple[str, str, str]
"""Of a row as it was read: hash of picture and caption (empty if it could not be read as a whole), error, hash of the
decoded pixels and their statistics."""


# ── valid files ──


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def pictures(photo: Image.Image) -> Iterator[bytes]:
    """A photograph in every format and pixel type that Pillow writes, also in formats that are not opened."""
    rgb, grey = photo.convert("RGB"), photo.convert("L")
    alpha = rgb.copy()
    alpha.putalpha(grey)
    other = rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in (
        {},
        {"progressive": True},
        {"exif": exif},
        {"xmp": b'<x tiff:Orientation="6"/>'},
        {"restart_marker_rows": 1},
    ):
        yield saved(rgb, "JPEG", **options)
    for picture in (grey, rgb.convert("CMYK")):
        yield saved(picture, "JPEG")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for picture in (rgb, grey, alpha, rgb.quantize(64), grey.convert("1"), grey.convert("LA"), deep):
        yield saved(picture, "PNG")
    yield saved(rgb, "PNG", exif=exif)
    for options in ({}, {"lossless": True}, {"save_all": True, "append_images": [other]}, {"exif": exif}):
        yield saved(rgb, "WEBP", **options)
        yield saved(alpha, "WEBP", **options)
    for picture in (rgb, grey, rgb.quantize(16), grey.convert("1")):
        yield saved(picture, "BMP")
    for compression in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield saved(rgb, "TIFF", compression=compression)
    yield saved(grey.convert("1"), "TIFF", compression="group4")
    for picture in (rgb.quantize(64), alpha, deep, rgb.convert("CMYK"), rgb.convert("YCbCr"), grey.convert("F")):
        yield saved(picture, "TIFF")
    yield saved(rgb, "TIFF", tiffinfo={274: 6})
    for options in ({}, {"no_jp2": True}, {"tile_size": (32, 32)}):
        yield saved(rgb, "JPEG2000", **options)
    yield saved(rgb.quantize(64), "GIF")
    yield saved(rgb.quantize(64), "GIF", save_all=True, append_images=[other.quantize(64)], transparency=2, disposal=2)
    for picture in (rgb, grey, grey.convert("1")):
        yield saved(picture, "PPM")
    if features.check("avif"):
        yield saved(rgb, "AVIF", speed=10)
        yield saved(alpha, "AVIF", speed=10)
    yield saved(alpha.resize((48, 48)), "ICO", sizes=[(48, 48), (16, 16)])
    yield saved(alpha.resize((48, 48)), "ICO", sizes=[(48, 48), (16, 16)], bitmap_format="bmp")
    yield saved(rgb, "MPO", save_all=True, append_images=[other])
    for form in ("TGA", "PCX", "DDS", "SGI", "EPS", "ICNS", "PDF"):
        yield saved(rgb.resize((64, 64)), form)


def originals() -> list[bytes]:
    """Small photographs in every format."""
    out: list[bytes] = []
    for path in demo_photographs()[:3]:
        with Image.open(path) as photo:
            out += pictures(photo.convert("RGB").resize((96, 64)))
    return out


# ── broken pictures ──


def first_difference(left: bytes, right: bytes) -> int:
    """Returns the offset of the first byte that differs."""
    size = min(len(left), len(right))
    differ = np.frombuffer(left, np.uint8)[:size] != np.frombuffer(right, np.uint8)[:size]
    return int(differ.argmax()) if differ.any() else size


def mutated(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """Breaks a file in one to four places, half of them in the first 200 bytes, where headers are."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if not out:
            break
        at = chance.randrange(min(len(out), 200) if chance.random() < 0.5 else len(out))
        chance.choice(MUTATIONS)(out, at, chance, chance.choice(others))
    if out.startswith(b"\x89PNG") and chance.random() < 0.5:
        repair_sums(out)
    return bytes(out)


def _cut(out: bytearray, at: int, chance: random.Random, other: bytes) -> None:
    del out[at:]


def _set_byte(out: bytearray, at: int, chance: random.Random, other: bytes) -> None:
    out[at] = chance.randrange(256)


def _flip_bit(out: bytearray, at: int, chance: random.Random, other: bytes) -> None:
    out[at] ^= 1 << chance.randrange(8)


def _set_number(out: bytearray, at: int, chance: random.Random, other: bytes) -> None:
    out[at : at + 4] = chance.choice(
        (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\x9c\x40", b"\x40\x9c\0\0")
    )


def _splice(out: bytearray, at: int, chance: random.Random, other: bytes) -> None:
    start = chance.randrange(len(other))
    out[at : at + 64] = other[start : start + 64]


def _delete(out: bytearray, at: int, chance: random.Random, other: bytes) -> None:
    del out[at : at + chance.randint(1, 64)]


def _repeat(out: bytearray, at: int, chance: random.Random, other: bytes) -> None:
    out[at:at] = out[at : at + chance.randint(1, 64)]


def _other_header(out: bytearray, at: int, chance: random.Random, other: bytes) -> None:
    out[:at] = other[:at]


def _swap(out: bytearray, at: int, chance: random.Random, other: bytes) -> None:
    size, to = chance.randint(1, 32), chance.randrange(len(out))
    out[at : at + size], out[to : to + size] = out[to : to + size], out[at : at + size]


def _set_marker(out: bytearray, at: int, chance: random.Random, other: bytes) -> None:
    """Changes a JPEG marker, or the name of a chunk, into another one of the file or of JPEG."""
    if (found := out.find(b"\xff", at)) >= 0:
        out[found + 1 : found + 2] = bytes(
            [chance.choice((0xC0, 0xC1, 0xC2, 0xC4, 0xCC, 0xD8, 0xD9, 0xDA, 0xDB, 0xE1, 0xEE))]
        )


MUTATIONS = (
    _cut, _set_byte, _flip_bit, _set_number, _splice, _delete, _repeat, _other_header, _swap, _set_marker,
)  # fmt: skip


def repair_sums(png: bytearray) -> None:
    """Corrects the checksums of a PNG file, so that the decoder gets to the broken content."""
    at = 8
    while at + 12 <= len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        if end + 4 > len(png):
            break
        png[end : end + 4] = zlib.crc32(png[at + 4 : end]).to_bytes(4, "big")
        at = end + 4


# ── broken tars and tables ──


class Container(NamedTuple):
    """A tar or table with sound rows.

    Attributes:
        suffix: of its name.
        data: its bytes.
        ends: offset behind the last byte of each row, where rows lie one after the other; else empty.
        mutate: breaks it.
    """

    suffix: str
    data: bytes
    ends: tuple[int, ...]
    mutate: Callable[[bytes, random.Random, Sequence[bytes]], bytes]


def tar_of(files: Sequence[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


CAPTIONS = [f"第{number}张照片，公园里的小猫" for number in range(12)]


def members(number: int, image: bytes) -> list[tuple[str, bytes]]:
    record = json.dumps({"key": f"{number:03d}", "width": 96, "tags": ["a", "b"]}).encode()
    return [
        (f"{number:03d}.jpg", image),
        (f"{number:03d}.txt", CAPTIONS[number].encode()),
        (f"{number:03d}.json", record),
    ]


def containers(sound: Sequence[bytes]) -> list[Container]:
    """A tar, a Parquet file, a CSV and a JSONL table of the same pairs."""
    files = [file for number, image in enumerate(sound) for file in members(number, image)]
    sizes = [
        sum(512 + -(-len(content) // 512) * 512 for _, content in members(n, image)) for n, image in enumerate(sound)
    ]
    table = pa.table(
        {"key": [f"{n:03d}" for n in range(len(sound))], "image": sound, "caption": CAPTIONS[: len(sound)]}
    )
    parquet = io.BytesIO()
    pq.write_table(table, parquet, row_group_size=4)
    lines = [
        json.dumps({"file_name": f"sound/{n:03d}.jpg", "caption": c}, ensure_ascii=False).encode() + b"\n"
        for n, c in enumerate(CAPTIONS)
    ]
    rows = [b"file_name,caption\n", *(f"sound/{n:03d}.jpg,{c}\n".encode() for n, c in enumerate(CAPTIONS))]
    return [
        Container(".tar", tar_of(files), tuple(np.cumsum(sizes).tolist()), break_tar),
        Container(".parquet", parquet.getvalue(), (), mutated),
        Container(".jsonl", b"".join(lines), tuple(np.cumsum([len(line) for line in lines]).tolist()), break_text),
        Container(".csv", b"".join(rows), tuple(np.cumsum([len(row) for row in rows])[1:].tolist()), break_text),
    ]


def break_tar(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """Breaks the header of a member, adds an odd member, or breaks the file anywhere."""
    kind = chance.random()
    if kind < 0.2:
        return mutated(data, chance, others)
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    at, out = chance.choice(headers), bytearray(data)
    if kind < 0.8:
        field, size = chance.choice(
            ((0, 100), (100, 8), (124, 12), (136, 12), (148, 8), (156, 1), (157, 100), (257, 8), (345, 155))
        )
        content = chance.choice(
            (os.urandom, lambda n: b"\xff" * n, lambda n: b"7" * n, lambda n: b"\x80" + bytes(n - 1), bytes)
        )(size)
        part = chance.randint(1, size)
        out[at + field : at + field + part] = content[:part]
        if field == 156:
            out[at + 156] = chance.choice(b"0123456SLKxgDVM7\0A")
        if chance.random() < 0.7:
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    elif kind < 0.9:
        odd = tarfile.TarInfo(
            chance.choice(("000.jpg", "odd.jpg", "../../odd.jpg", "/odd.txt", "a/./b.jpg", "._000.jpg", "é" * 90))
        )
        odd.type = chance.choice(
            (
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.FIFOTYPE,
                tarfile.CHRTYPE,
                tarfile.DIRTYPE,
                tarfile.GNUTYPE_SPARSE,
                b"Z",
            )
        )
        odd.linkname = chance.choice(("000.jpg", "odd.jpg", "/etc/passwd", ""))
        out[at:at] = odd.tobuf(chance.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
    elif kind < 0.95:
        del out[at:]
        out += chance.choice((b"", bytes(512), bytes(1024) + data, data))
    else:
        length = chance.choice(
            (b"99999999999 size=1\n", b"20 size=-1\n", b"16 size=9999999999999\n", b"x", b"30 path=" + b"\xff" * 20)
        )
        odd = tarfile.TarInfo("pax")
        odd.type, odd.size = chance.choice((b"x", b"g", b"L", b"K")), len(length)
        out[at:at] = odd.tobuf(tarfile.USTAR_FORMAT) + length.ljust(512, b"\0")
    return bytes(out)


ODD_TEXT = (
    b"\0", b'"', b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n\n", b"," * 50, b"[" * 5000, b'{"a":' * 5000, b"NaN",
    b"1e999", b'"\\ud800"', b"\xd0\xd0", b"x" * 300_000, b'{"caption": {"a": {}}}\n', b"\x1a",
    b'{"file_name": 7, "caption": null}\n',
)  # fmt: skip


def break_text(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """Inserts odd text at a place, or breaks the file anywhere."""
    if chance.random() < 0.4:
        return mutated(data, chance, others)
    at = chance.randrange(len(data))
    return data[:at] + chance.choice(ODD_TEXT) + data[at + chance.choice((0, 0, 5)) :]


# ── the child ──


def read_rows(path: str, device: Device) -> list[Row] | str:
    """Reads a shard as SCORE does; returns its rows, or the words with which it was refused."""
    context = Context(device, ModelSet({}), frozenset(), max_pixels=MAX_PIXELS)
    out: list[Row] = []
    try:
        layout = Layout()
        for shard in find_shards([path], layout):
            for batch in batches_of(shard, open_shard(shard, layout), Memory()):
                marks = [
                    "" if error else xxhash.xxh128_hexdigest(image + caption.encode("utf-8", "surrogatepass"))
                    for image, caption, error in zip(
                        batch["image"], batch["caption"].to_pylist(), batch["error"], strict=True
                    )
                ]
                Header(context)(batch)
                errors = dict(zip(batch["row"].tolist(), batch["error"], strict=True))
                scores: dict[int, str] = {}
                alive = batch.take(np.array([error is None for error in batch["error"]], bool))
                if len(alive):
                    Decode(context)(alive)
                    errors |= zip(alive["row"].tolist(), alive["error"], strict=True)
                    alive = alive.take(np.array([error is None for error in alive["error"]], bool))
                if len(alive):
                    PixelStatistics(context)(alive)
                    for position, row in enumerate(alive["row"].tolist()):
                        statistics = np.array([alive[name][position] for name in PixelStatistics.produces], np.float64)
                        pixels = np.ascontiguousarray(device.down(alive["pixels"][position]))
                        scores[row] = xxhash.xxh64_hexdigest(statistics.tobytes() + pixels.tobytes())
                for mark, row in zip(marks, batch["row"].tolist(), strict=True):
                    error = errors[row]
                    out.append((mark, "" if error is None else error or "?", scores.get(row, "")))
    except DanqingError as problem:
        return str(problem) or "?"
    return out


def serve(pipe: Connection, kind: str) -> None:
    """Reads the shards whose paths come through the pipe; sends their rows, or an exception's text, and the memory."""
    faulthandler.enable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # codecs print a line for every broken file
    if kind == "cpu":
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    with open_device(kind, threads=1) as device:
        while path := pipe.recv():
            try:
                outcome: object = read_rows(path, device)
            except BaseException as problem:
                outcome = problem if isinstance(problem, KeyboardInterrupt) else (repr(problem),)
            pipe.send((outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10))


class Child:
    """A process that reads shards; a new one is started after it died or took too long."""

    def __init__(self, kind: str) -> None:
        self.kind, self.peak = kind, 0
        self._start()

    def _start(self) -> None:
        self.pipe, end = mp.get_context("spawn").Pipe()
        self.process = mp.get_context("spawn").Process(target=serve, args=(end, self.kind), daemon=True)
        self.process.start()
        end.close()

    def read(self, path: Path) -> Any:
        """Returns the rows; a tuple with the text of an exception; or, as text, `killed …`, `too long`, `refused …`."""
        try:
            self.pipe.send(str(path))
            if self.pipe.poll(SHARD_SECONDS + (0 if self.peak else 120)):  # the first shard compiles the kernels
                outcome, peak = self.pipe.recv()
                self.peak = max(self.peak, peak)
                return f"refused: {outcome}" if isinstance(outcome, str) else outcome
            self.process.kill()
            end = "too long"
        except (EOFError, OSError):
            self.process.join()
            end = f"killed: {self.process.exitcode}"
        self.process.join()
        self._start()
        return end


# ── the count ──

BAD = (
    "shards that killed the process", "shards that took too long", "shards that raised", "rows without a reason",
    "untouched rows that changed", "untouched rows before the damage that are missing",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--files", type=int, default=20_000, help="number of broken files (default: 20000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, help="folder for the shards that failed")
    options = parser.parse_args()
    chance, counts = random.Random(options.seed), Counter[str]()
    files = originals()
    sound = [saved(Image.open(path).convert("RGB").resize((96, 64)), "JPEG") for path in demo_photographs()[:12]]
    child = Child(options.device)

    with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None) as name:
        folder = Path(name)
        (folder / "sound").mkdir()
        for number, image in enumerate(sound):
            (folder / "sound" / f"{number:03d}.jpg").write_bytes(image)
        kinds = containers(sound)
        path = folder / "whole.tar"
        path.write_bytes(kinds[0].data)
        whole = child.read(path)
        assert isinstance(whole, list) and not any(error for _, error, _ in whole), whole
        expected = {mark: score for mark, _, score in whole}
        marks = [mark for mark, _, _ in whole]

        def check(path: Path, untouched: Sequence[str]) -> None:
            outcome = child.read(path)
            problems = []
            if isinstance(outcome, tuple):
                problems.append((BAD[2], outcome[0]))
            elif isinstance(outcome, str):
                if not outcome.startswith("refused"):
                    problems.append((BAD[outcome == "too long"], outcome))
                elif untouched:
                    counts["refused as a whole, with rows before the damage"] += 1
                else:
                    counts["refused as a whole"] += 1
            else:
                for mark, error, score in outcome:
                    counts["rows"] += 1
                    counts["rows with an error" if error else "rows with scores"] += 1
                    if error and not error.strip(": ?"):
                        problems.append((BAD[3], error))
                    if mark in expected and score != expected[mark]:
                        problems.append((BAD[4], error or "other pixels"))
                    counts["untouched rows"] += mark in expected
                found = {mark for mark, _, _ in outcome}
                lost = sum(mark not in found for mark in untouched)
                problems += [(BAD[5], "")] * lost
            counts.update(problem for problem, _ in problems)
            if problems:
                print(f"{problems[0][0]} ({len(problems)}): {problems[0][1][:300]}", file=sys.stderr, flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{options.seed}-{counts['broken files']}-{path.name}").write_bytes(
                        path.read_bytes()
                    )

        while counts["broken files"] < options.files:
            if chance.random() < CONTAINER_SHARE / (CONTAINER_SHARE + (1 - CONTAINER_SHARE) / BATCH):
                kind = chance.choice(kinds)
                data = kind.mutate(kind.data, chance, files)
                first = first_difference(data, kind.data)
                path = folder / f"broken{kind.suffix}"
                before = [mark for mark, end in zip(marks, kind.ends, strict=False) if end <= first]
                counts[f"broken {kind.suffix[1:]}"] += 1
                counts["broken files"] += 1
            else:
                bad = [mutated(chance.choice(files), chance, files) for _ in range(BATCH)]
                rows, before = [], []
                for place, image in enumerate(bad):
                    rows.append((f"{place:03d}.jpg", image))
                    if place % SOUND_EVERY == 0:
                        number = place // SOUND_EVERY
                        rows += [(f"{place:03d}s.jpg", sound[number]), (f"{place:03d}s.txt", CAPTIONS[number].encode())]
                        before.append(marks[number])
                data, path = tar_of(rows), folder / "pictures.tar"
                counts["broken pictures"] += len(bad)
                counts["broken files"] += len(bad)
            path.write_bytes(data)
            check(path, before)
    child.pipe.send("")
    print(f"{options.device}, seed {options.seed}; largest resident memory of a child: {child.peak:,} MiB")
    print(*(f"{counts[name]:10,}  {name}" for name in sorted({*counts, *BAD})), sep="\n")
    return int(any(counts[name] for name in BAD))


if __name__ == "__main__":
    sys.exit(main())
