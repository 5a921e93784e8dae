"""Pictures are opened in one place: only formats of the web, and none with more pixels than allowed."""

from __future__ import annotations

import io
import re
import resource
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from danqing.engine.core.device import Device
from danqing.engine.report.tiles import thumbnail
from danqing.engine.sources import Sample
from danqing.engine.stages.avif import frame_sizes
from danqing.engine.stages.decode import decode_with_pillow
from danqing.engine.stages.header import read_header
from danqing.engine.stages.opening import TooManyPixelsError, open_picture
from danqing.engine.write.formats import image_extension
from tests.engine.stages.test_pictures import through_header

ENGINE = Path(__file__).parents[3] / "engine"
LIMIT = 1_000_000
SPACE_BYTES = 256 << 20
"""Less than the smallest of the bombs below takes; more than a start of Pillow's plug-ins."""


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


SMALL = Image.effect_noise((20, 16), 50).convert("RGB")


def png(width: int, height: int, late: tuple[bytes, ...] = ()) -> bytes:
    """A PNG file with few pixels, and further chunks behind them."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(bytes(99)), *late, b"IEND")
    whole = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def tiff_of_tiles(side: int) -> bytes:
    """100 × 100 pixels in one tile of `side` × `side`."""
    tags = (
        (256, 100),
        (257, 100),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, side),
        (323, side),
        (324, 200),
        (325, 5000),
    )
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)).ljust(200, b"\0") + zlib.compress(
        bytes(5000)
    )


def icon_of(png_file: bytes) -> bytes:
    """An icon of 16 × 16 pixels by its directory."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png_file), 22) + png_file


def gif(screen: int, frame: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + bytes(6)
    control = b"!\xf9\x04" + struct.pack("<BHB", 2 << 2, 0, 0) + b"\0"
    return head + control + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\2\2\x4c\1\0;"


def jp2_of(side: int) -> bytes:
    """A JPEG 2000 file whose codestream claims another size than its header."""
    data = bytearray(saved(SMALL, "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51")
    struct.pack_into(">II", data, at + 8, side, side)
    return bytes(data)


def avif_of(stated: int, coded: int, **options: Any) -> bytes:
    """An AVIF file that states another size than that of its coded frames."""
    data = saved(Image.new("RGB", (coded, coded)), "AVIF", speed=10, **options)
    before = b"ispe" + struct.pack(">III", 0, coded, coded)
    assert before in data
    return data.replace(before, b"ispe" + struct.pack(">III", 0, stated, stated))


BOMBS = {
    "PNG": png(50_000, 40_000),
    "PNG with late EXIF": png(50_000, 40_000, (b"eXIf" + bytes(30),)),
    "TIFF tiles": tiff_of_tiles(40_000),
    "icon": icon_of(png(40_000, 40_000)),
    "GIF screen": gif(60_000, 1),
    "GIF frame": gif(1, 60_000),
    "WebP canvas": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff\x3f\0" * 2 + b"ANIM",
    "JPEG 2000": jp2_of(50_000),
    "AVIF as stated": avif_of(9000, 16),
    "AVIF as coded": avif_of(16, 2000),
    "AVIF sequence": avif_of(16, 2000, save_all=True, append_images=[Image.new("RGB", (2000, 2000), "red")]),
}


@contextmanager
def little_memory() -> Iterator[None]:
    """Lets the process take no more than `SPACE_BYTES` of further memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPACE_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(name: str, device: Device) -> None:
    bomb = BOMBS[name]
    through_header(device, [saved(SMALL, "GIF")])  # imports Pillow's plug-ins
    with little_memory():
        batch = through_header(device, [bomb], max_pixels=LIMIT)
        decoded = decode_with_pillow(bomb, LIMIT)
        source, problem = thumbnail(bomb, None, LIMIT)
        extension = image_extension(Sample("a", bomb, "", ""), LIMIT)
    assert "more than --max-pixels" in batch["error"][0] and batch["readable"].tolist() == [0]
    assert isinstance(decoded, str) and "more than --max-pixels" in decoded
    assert "more than --max-pixels" in problem and not source
    assert extension


def test_the_boxes_of_an_avif_file_may_say_anything() -> None:
    data = avif_of(16, 32)
    assert frame_sizes(data) == [(16, 16), (32, 32)]
    for at in range(len(data)):
        for value in (0, 1, 127, 255):
            with suppress(ValueError):  # too many items
                frame_sizes(data[:at] + bytes([value]) + data[at + 1 :])
        frame_sizes(data[:at])
    for more in (b"\0\0\0\x08free" * 5000, b"\0\0\0\x20iloc\2" + b"\xff" * 23):
        assert re.search("more than 4096 (boxes|items)", str(read_header(data + more).error))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_the_limit_itself_is_allowed(form: str) -> None:
    data, pixels = saved(SMALL, form), SMALL.width * SMALL.height
    assert read_header(data, pixels).error is None
    assert "more than --max-pixels" in str(read_header(data, pixels - 1).error)
    with open_picture(data, pixels) as picture:
        assert picture.size == SMALL.size
    with pytest.raises(TooManyPixelsError, match=r"20×16 pixels|320 pixels"):
        open_picture(data, pixels - 1)


OTHERS = {"EPS": "PostScript", "PDF": "a PDF", "TGA": "bytes starting with", "PCX": "bytes starting with 0a"}


@pytest.mark.parametrize("form", OTHERS)
def test_formats_that_are_none_of_the_web_are_not_opened(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("ran Ghostscript"))
    data = saved(SMALL, form)
    error = str(read_header(data).error)
    assert error.startswith("not a picture: ") and OTHERS[form] in error
    with pytest.raises(UnidentifiedImageError, match=r"^not a picture that can be opened$"):  # no memory address
        open_picture(data, LIMIT)


def test_nothing_else_opens_pictures() -> None:
    """Only `open_picture` does, and the JPEG round trip of `Resize`, which opens a file of its own."""
    opening = {
        path.relative_to(ENGINE).as_posix()
        for path in ENGINE.rglob("*.py")
        if re.search(r"\bImage\.open\(", path.read_text(encoding="utf-8"))
    }
    assert opening == {"stages/opening.py", "stages/resize.py"}
