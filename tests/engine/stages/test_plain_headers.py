"""Our readers of plain headers: if they return a result, it equals Pillow's."""

from __future__ import annotations

import io
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from danqing.engine.stages.header import ask_pillow, jpeg_qualities, read_header
from danqing.engine.stages.plain_headers import Facts, read_plain_header

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (23, 34, 4), np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 6


def saved(mode: str, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = Image.new("I;16", (9, 7)) if mode == "I;16" else NOISE.convert(mode)
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def agree(data: bytes) -> bool:
    """Returns whether our reader returns a result; asserts that it equals Pillow's."""
    ours, pillows = read_plain_header(data), ask_pillow(data, max_pixels=2**62)
    if ours is None:
        return False
    assert comparable(ours) == comparable(pillows)
    return True


def comparable(facts: Facts) -> Facts:
    return facts._replace(luminance=None if facts.luminance is None else tuple(facts.luminance))


# ── files in parts ──


def segments(jpeg: bytes) -> tuple[list[bytes], bytes]:
    """Splits a JPEG file into the segments before the first scan, and the rest."""
    parts, at = [], 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        parts.append(jpeg[at:end])
        at = end
    return parts, jpeg[at:]


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def with_segment(marker: int, content: bytes, jpeg: bytes | None = None) -> bytes:
    parts, scan = segments(jpeg or saved("RGB", "JPEG"))
    return b"\xff\xd8" + b"".join([parts[0], segment(marker, content), *parts[1:]]) + scan


def chunks(data: bytes, order: Any) -> list[bytes]:
    """Splits a PNG file into chunks (kind and content), or a WebP file into chunks (with their sizes)."""
    parts, at = [], 8 if order == "big" else 12
    while at + 8 <= len(data):
        if order == "big":
            end = at + 12 + int.from_bytes(data[at : at + 4], order)
            parts.append(data[at + 4 : end - 4])
        else:
            size = int.from_bytes(data[at + 4 : at + 8], order)
            end = at + 8 + size + size % 2
            parts.append(data[at:end])
        at = end
    return parts


def png(parts: list[bytes]) -> bytes:
    whole = ((len(p) - 4).to_bytes(4, "big") + p + zlib.crc32(p).to_bytes(4, "big") for p in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def with_chunk(kind: bytes, content: bytes, mode: str = "RGB") -> bytes:
    parts = chunks(saved(mode, "PNG"), "big")
    return png([parts[0], kind + content, *parts[1:]])


def webp(parts: list[bytes]) -> bytes:
    content = b"WEBP" + b"".join(parts)
    return b"RIFF" + len(content).to_bytes(4, "little") + content


# ── plain files and others ──

JPEG_OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"quality": 1}, {"quality": 100}, {"progressive": True}, {"optimize": True}, {"comment": b"hello"},
    {"restart_marker_blocks": 1}, {"icc_profile": b"x" * 300}, {"icc_profile": b"x" * 70_000}, {"dpi": (72, 72)},
    {"qtables": [list(range(1, 65))] * 2},
)  # fmt: skip
PLAIN = {
    **{f"jpeg {mode} {o}"[:60]: saved(mode, "JPEG", **o) for mode in ("L", "RGB") for o in JPEG_OPTIONS},
    **{f"jpeg 4:{n}": saved("RGB", "JPEG", subsampling=n) for n in (0, 1, 2)},
    "jpeg, Adobe RGB": with_segment(0xEE, b"Adobe\0d\0\0\0\0\0"),
    "jpeg, Ducky": with_segment(0xEC, b"Ducky\0\1\0\4\0\0\0\x3c\0\0"),
    **{f"png {mode}": saved(mode, "PNG") for mode in ("1", "L", "RGB", "P", "LA", "RGBA")},
    **{f"png P{n}": saved("P", "PNG", bits=n) for n in (1, 2, 4)},
    "png L, transparent": saved("L", "PNG", transparency=3),
    "png RGB, transparent": saved("RGB", "PNG", transparency=(1, 2, 3)),
    "png P, transparent": saved("P", "PNG", transparency=bytes(range(256))),
    "png P, one colour transparent": saved("P", "PNG", transparency=0),
    "png, resolution": saved("RGB", "PNG", dpi=(72, 72)),
    "png, Software": with_chunk(b"tEXt", b"Software\0Inkscape"),
    "webp": saved("RGB", "WEBP"),
    "webp with alpha": saved("RGBA", "WEBP"),
    "webp, lossless": saved("RGB", "WEBP", lossless=True),
    "webp, lossless with alpha": saved("RGBA", "WEBP", lossless=True),
    "webp, profile": saved("RGB", "WEBP", icc_profile=b"x" * 301),
}
VP8, VP8L = chunks(saved("RGB", "WEBP"), "little")[0], chunks(saved("RGB", "WEBP", lossless=True), "little")[0]
ALPHA = chunks(saved("RGBA", "WEBP"), "little")
OTHERS = {
    "jpeg CMYK": saved("CMYK", "JPEG"),
    "jpeg, turned": saved("RGB", "JPEG", exif=TURNED),
    "jpeg, XMP": saved("RGB", "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
    "jpeg of several pictures": saved("RGB", "MPO", save_all=True, append_images=[NOISE.convert("RGB")]),
    "jpeg, broken MPF": with_segment(0xE2, b"MPF\0MM"),
    "jpeg, short profile": with_segment(0xE2, b"ICC_PROFILE\0"),
    "jpeg, Photoshop": with_segment(0xED, b"Photoshop 3.0\x008BIM"),
    "jpeg, short JFIF": with_segment(0xE0, b"JFIF\0"),
    "jpeg, short Adobe": with_segment(0xEE, b"Adobe"),
    "jpeg, number of lines": with_segment(0xDC, b"\0\1"),
    "jpeg, arithmetic coding": with_segment(0xCC, b"\0\0"),
    "jpeg, two frames": with_segment(0xC0, b"\x08\0\1\0\1\1\1\x11\0"),
    "jpeg, 12 bits": with_segment(0xC1, b"\x0c\0\1\0\1\1\1\x11\0"),
    "jpeg, two components": with_segment(0xC0, b"\x08\0\1\0\1\2\1\x11\0\2\x11\0"),
    "jpeg, lossless": with_segment(0xC3, b"\x08\0\1\0\1\1\1\x11\0"),
    "jpeg, table cut": with_segment(0xDB, bytes(64)),
    "jpeg, wide table": with_segment(0xDB, b"\x10" + bytes([1, 0] * 64)),
    "jpeg, fill bytes": saved("RGB", "JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
    "jpeg, junk between": saved("RGB", "JPEG").replace(b"\xff\xdb", b"junk\xff\xdb", 1),
    "jpeg, no tables": b"\xff\xd8" + b"".join(s for s in segments(saved("L", "JPEG"))[0] if s[1] != 0xDB) + b"\xff\xda",
    "jpeg, empty": b"\xff\xd8\xff",
    "png, 16 bits": saved("I;16", "PNG"),
    "png, turned": saved("RGB", "PNG", exif=TURNED),
    "png, animated": saved("RGB", "PNG", save_all=True, append_images=[NOISE.convert("L").convert("RGB")]),
    "png, profile": saved("RGB", "PNG", icc_profile=b"x" * 300),
    "png, text exif": with_chunk(b"tEXt", b"exif\0MM"),
    "png, text transparency": with_chunk(b"tEXt", b"transparency\0yes"),
    "png, short transparency": with_chunk(b"tRNS", b"\0\1"),
    "png, short gamma": with_chunk(b"gAMA", b"\0"),
    "png, unknown chunk": with_chunk(b"vpAg", bytes(9)),
    "png, wrong checksum": saved("RGB", "PNG")[:29] + bytes(4) + saved("RGB", "PNG")[33:],
    "webp, turned": saved("RGB", "WEBP", exif=TURNED),
    "webp, XMP": saved("RGB", "WEBP", xmp=b"<x/>"),
    "webp, animated": saved("RGB", "WEBP", save_all=True, append_images=[NOISE.transpose(Image.Transpose.ROTATE_180)]),
    "webp, cut": saved("RGB", "WEBP")[:-2],
    "webp, more behind": saved("RGB", "WEBP") + b"more",
    "webp, canvas of another size": webp([ALPHA[0][:24] + b"\x63\0\0" + ALPHA[0][27:], *ALPHA[1:]]),
    "webp, alpha without flag": webp([ALPHA[0][:8] + b"\0" + ALPHA[0][9:], *ALPHA[1:]]),
    "webp, flag without alpha": webp([ALPHA[0], ALPHA[-1]]),
    "webp, two pictures": webp([VP8, VP8L]),
    "webp, alpha before lossless": webp([ALPHA[0], ALPHA[1], VP8L]),
    "webp, no picture": webp([ALPHA[0]]),
    "gif": saved("P", "GIF"),
    "tiff": saved("RGB", "TIFF"),
    "bmp": saved("RGB", "BMP"),
    "text": b"<html>",
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_headers_are_read(name: str) -> None:
    assert agree(PLAIN[name])


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_left_to_pillow(name: str) -> None:
    assert read_plain_header(OTHERS[name]) is None
    assert read_header(OTHERS[name]) == ask_pillow(OTHERS[name])


def test_truncated_pictures_equal_pillow() -> None:
    for name in ("jpeg L {}", "jpeg RGB {'progressive': True}", "png P, transparent", "webp", "webp with alpha"):
        data = PLAIN[name]
        for stop in range(min(len(data), 900)):
            agree(data[:stop])


def test_qualities_of_a_batch() -> None:
    qualities = [1, 24, 25, 49, 50, 51, 75, 98, 100, 75]
    files = [saved("RGB", "JPEG", quality=quality) for quality in qualities]
    headers = [read_header(data) for data in [*files, PLAIN["png RGB"], b"junk", b""]]
    assert jpeg_qualities(headers).tolist() == [*qualities, 100, 0, 0]
    assert jpeg_qualities([ask_pillow(data) for data in files]).tolist() == qualities
    assert jpeg_qualities([]).tolist() == []


# ── changed files ──


def changed_byte(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(min(len(data), 700))
    value = rng.choice((0, 1, 2, 0x10, 0xFF, data[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
    return data[:at] + bytes([value]) + data[at + 1 :]


def changed_jpeg(data: bytes, rng: random.Random) -> bytes:
    """Changes the order of segments, removes one, repeats one, and inserts an unknown one."""
    parts, scan = segments(data)
    if rng.random() < 0.5:
        rng.shuffle(parts)
    if rng.random() < 0.5:
        del parts[rng.randrange(len(parts))]
    if rng.random() < 0.4:
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(parts))
    if rng.random() < 0.5:
        begin = rng.choice((b"JFIF\0", b"Exif\0\0", b"ICC_PROFILE\0", b"Adobe", b"MPF\0", b"\0", b"\x08", b"\x13"))
        marker = rng.choice((0xC0, 0xC1, 0xC4, 0xDB, 0xDD, 0xDE, *range(0xE0, 0xF0), 0xFE))
        parts.insert(rng.randrange(len(parts) + 1), segment(marker, (begin + bytes(80))[: rng.randrange(80)]))
    return b"\xff\xd8" + b"".join(parts) + scan


def changed_png(data: bytes, rng: random.Random) -> bytes:
    parts = chunks(data, "big")
    if rng.random() < 0.7:
        kind = rng.choice((b"tRNS", b"PLTE", b"tEXt", b"acTL", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"IEND"))
        parts.insert(rng.randrange(len(parts)), kind + rng.choice((b"Software\0x", bytes(rng.randrange(40)))))
    at = rng.randrange(len(parts))
    if rng.random() < 0.5 and len(parts[at]) > 4:
        part = bytearray(parts[at])
        part[rng.randrange(4, min(len(part), 20))] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, rng.randrange(256)))
        parts[at] = bytes(part)
    return png(parts)


def changed_webp(data: bytes, rng: random.Random) -> bytes:
    parts = chunks(data, "little")
    if rng.random() < 0.3:
        rng.shuffle(parts)
    if rng.random() < 0.3:
        del parts[rng.randrange(len(parts))]
    if rng.random() < 0.3:
        kind = rng.choice((b"ICCP", b"ALPH", b"EXIF", b"XMP ", b"ANIM", b"VP8 ", b"VP8L", b"VP8X", b"JUNK"))
        parts.insert(rng.randrange(len(parts) + 1), kind + b"\4\0\0\0" + bytes(4))
    if parts and rng.random() < 0.6:
        at = rng.randrange(len(parts))
        part = bytearray(parts[at])
        part[rng.randrange(min(len(part), 24))] ^= 1 << rng.randrange(8)
        parts[at] = bytes(part)
    return webp(parts)


def changed(name: str, data: bytes, rng: random.Random) -> bytes:
    kinds: dict[str, Callable[[bytes, random.Random], bytes]] = {
        "jpeg": changed_jpeg, "png": changed_png, "webp": changed_webp,
    }  # fmt: skip
    return (changed_byte if rng.random() < 0.5 else kinds[name.split()[0].strip(",")])(data, rng)


def all_changed(seed: int, count: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(count):
        name = rng.choice(list(PLAIN))
        yield changed(name, PLAIN[name], rng)


def test_changed_pictures_equal_pillow() -> None:
    read = sum(map(agree, all_changed(0, 6000)))
    assert read > 2000
