"""Every kind of picture file, decoded as Pillow decodes it: bit by bit, or within a stated tolerance."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps, features

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.sources import find_shards
from danqing.engine.stages.base import Context
from danqing.engine.stages.decode import Decode
from danqing.engine.stages.header import Header
from danqing.trt_models.model_set import ModelSet

NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE).resize((157, 119), Image.Resampling.BICUBIC)
GREY = PICTURE.convert("L")
VEIL = Image.fromarray(np.random.default_rng(1).integers(0, 256, (119, 157), dtype=np.uint8))


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def veiled(picture: Image.Image) -> Image.Image:
    picture = picture.copy()
    picture.putalpha(VEIL)
    return picture


def eight_bit_files() -> Iterator[tuple[str, bytes]]:
    for quality, subsampling, progressive in ((75, 2, False), (95, 0, False), (75, 1, False), (85, 2, True)):
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        yield f"jpeg {options}", saved(PICTURE, "JPEG", **options)
    yield "jpeg grey", saved(GREY, "JPEG")
    yield from cmyk_files()
    yield "jpeg with restart markers", saved(PICTURE, "JPEG", restart_marker_rows=1)
    for mode in ("1", "L", "P", "RGB"):
        yield f"png {mode}", saved(PICTURE.convert(mode), "PNG")
        yield f"bmp {mode}", saved(PICTURE.convert(mode), "BMP")
    for bits in (1, 2, 4):
        yield f"png with {bits} bits", saved(PICTURE.quantize(2**bits), "PNG", bits=bits)
    for mode in ("RGBA", "LA"):
        yield f"png {mode}", saved(veiled(PICTURE if mode == "RGBA" else GREY), "PNG")
    yield "png with a clear palette entry", saved(PICTURE.convert("P"), "PNG", transparency=3)
    yield "png with a clear colour", saved(PICTURE, "PNG", transparency=PICTURE.getpixel((3, 3)))
    yield "webp", saved(PICTURE, "WEBP")
    yield "webp lossless", saved(PICTURE, "WEBP", lossless=True)
    yield "webp alpha", saved(veiled(PICTURE), "WEBP", lossless=True)
    yield "webp animated", saved(PICTURE, "WEBP", save_all=True, append_images=[veiled(PICTURE)], lossless=True)
    for compression in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield f"tiff {compression}", saved(PICTURE, "TIFF", compression=compression)
    for mode in ("L", "P", "CMYK", "LAB", "F", "I", "YCbCr"):
        yield f"tiff {mode}", saved(PICTURE.convert(mode), "TIFF")
    yield "tiff alpha", saved(veiled(PICTURE), "TIFF")
    yield "jpeg 2000", saved(PICTURE, "JPEG2000", irreversible=False)
    yield "jpeg 2000 lossy", saved(PICTURE, "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[20])
    yield "gif", saved(PICTURE.convert("P"), "GIF")
    yield "gif animated", saved(PICTURE.convert("P"), "GIF", save_all=True, append_images=[GREY.convert("P")])
    yield "gif with a clear colour", saved(PICTURE.convert("P"), "GIF", transparency=5)
    yield "ppm with a maximum of 100", b"P6 157 119 100\n" + bytes(value * 100 // 255 for value in PICTURE.tobytes())
    for form in ("PPM", "ICO", "MPO", *(["AVIF"] if features.check("avif") else [])):
        yield form.lower(), saved(PICTURE, form)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        for form in ("JPEG", "PNG", "WEBP", "TIFF"):
            options = {"lossless": True} if form == "WEBP" else {}
            yield f"{form.lower()} turned {orientation}", saved(PICTURE, form, exif=exif, **options)
    yield from oddly_turned_files()


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def cmyk_files() -> Iterator[tuple[str, bytes]]:
    """CMYK and YCCK, whose meaning an Adobe marker changes."""
    data = saved(PICTURE.convert("CMYK"), "JPEG")
    at = data.index(b"Adobe") - 4
    rest = data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    yield "jpeg cmyk without Adobe marker", data[:at] + rest
    for transform in (0, 2):
        adobe = segment(0xEE, b"Adobe\0\x64" + bytes(4) + bytes([transform]))
        yield f"jpeg cmyk, transform {transform}", data[:at] + adobe + rest


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def exif_of(orientation: int, kind: int = 3) -> bytes:
    """EXIF with one tag; `kind` 1 stores the orientation as a byte, 3 as 16 bits, 4 as 32 bits."""
    value = orientation.to_bytes(4, "little")
    return b"II*\0\x08\0\0\0\x01\0\x12\x01" + bytes([kind, 0]) + b"\1\0\0\0" + value + bytes(4)


def oddly_turned_files() -> Iterator[tuple[str, bytes]]:
    """Orientation that is not in one EXIF segment in front of the pixels, as 16 bits."""
    jpeg, png = saved(PICTURE, "JPEG"), saved(PICTURE, "PNG")

    def of(*orientations: int | None, kind: int = 3) -> bytes:
        parts = (
            segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP if o is None else b"Exif\0\0" + exif_of(o, kind))
            for o in orientations
        )
        return jpeg[:2] + b"".join(parts) + jpeg[2:]

    orders: tuple[tuple[int | None, ...], ...] = ((None,), (6, 1), (1, 6), (8, None), (None, 8), (0, None), (9,))
    yield from ((f"jpeg turned by {order}", of(*order)) for order in orders)
    for kind in (1, 4):
        yield f"jpeg turned, type {kind}", of(6, kind=kind)
    yield "jpeg with broken EXIF", jpeg[:2] + segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff") + jpeg[2:]
    raw = b"Raw profile type exif\0\nexif\n      36\n" + (b"Exif\0\0" + exif_of(6)).hex().encode()
    late = {"eXIf": exif_of(6), "iTXt": b"XML:com.adobe.xmp" + bytes(5) + XMP, "tEXt": raw}
    ends = {"early": png.index(b"IDAT") - 4, "late": png.index(b"IEND") - 4}
    for name, content in late.items():
        part = name.encode() + content
        chunk = len(content).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big")
        for place, at in ends.items():
            yield f"png turned by {place} {name}", png[:at] + chunk + png[at:]
    yield "png with a late text", png[: ends["late"]] + png_text() + png[ends["late"] :]


def png_text() -> bytes:
    part = b"tEXtdate:create\x002020-01-01"
    return (len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big")


FILES = dict(eight_bit_files())


def decoded(device: Device, files: list[bytes]) -> Batch:
    context = Context(device, ModelSet({}), frozenset())
    batch = Batch({"row": np.arange(len(files)), "image": files, "error": [None] * len(files)})
    Header(context)(batch)
    Decode(context)(batch)
    return batch


def on_white(data: bytes) -> np.ndarray:
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return np.asarray(picture.convert("RGB"))


def test_all_formats_at_once_equal_pillow_bit_by_bit(device: Device) -> None:
    batch = decoded(device, list(FILES.values()))
    sizes = zip(batch["width"].tolist(), batch["height"].tolist(), strict=True)
    for (name, data), pixels, error, size in zip(FILES.items(), batch["pixels"], batch["error"], sizes, strict=True):
        assert error is None, name
        assert pixels.shape[1::-1] == size, name
        assert (pixels == on_white(data)).all(), name


def test_the_fast_decoder_is_used_for_turned_pictures(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are common; only files of which it is known that it gives other pixels go to Pillow."""
    fast = [FILES[name] for name in FILES if name.startswith(("jpeg turned", "png turned by late"))]
    monkeypatch.setattr("danqing.engine.stages.decode.decode_with_pillow", lambda *_, **__: "asked Pillow")
    assert decoded(device, [*fast, FILES["jpeg cmyk, transform 0"]])["error"] == [None] * len(fast) + ["asked Pillow"]


def test_grey_of_16_bits_in_a_ppm_is_scaled(device: Device) -> None:
    """Pillow reads it as 32 bits, and its conversion to RGB would show it white."""
    deep = np.random.default_rng(0).integers(0, 65536, (50, 60), dtype=np.uint16)
    data = b"P5 60 50 65535\n" + deep.astype(">u2").tobytes()
    assert np.abs(decoded(device, [data])["pixels"][0][:, :, 0] - deep / 257).max() <= 1


@pytest.mark.parametrize("form", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_scaled(device: Device, form: str, channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (50, 60, channels), dtype=np.uint16)
    deep[..., 3:] = 65535  # opaque
    found = decoded(device, [cv2.imencode(form, deep)[1].tobytes()])
    assert found["error"] == [None]
    expected = deep[..., 2::-1] if channels > 1 else np.repeat(deep, 3, axis=2)  # OpenCV writes BGR
    assert np.abs(found["pixels"][0] - expected / 257).max() <= 1


HOSTILE = {
    "empty": (b"", "no picture"),
    "HTML": (b"<!DOCTYPE html><html></html>", "an HTML page"),
    "PDF": (b"%PDF-1.7 ...", "a PDF"),
    "ZIP": (b"PK\x03\x04" + bytes(99), "a ZIP archive"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "JPEG without its end": (saved(PICTURE, "JPEG")[:1500], "cannot be decoded"),
    "PNG without its end": (saved(PICTURE, "PNG")[:-3000], "cannot be decoded"),
    "PNG with a bad sum": (bytes(saved(PICTURE, "PNG")[:60]) + b"\xff" + saved(PICTURE, "PNG")[61:], "decoded"),
    "WebP without its end": (saved(PICTURE, "WEBP")[:500], "unreadable header"),
    "GIF header alone": (saved(GREY, "GIF")[:20], ""),
    "a bomb": (saved(Image.new("1", (20000, 20000)), "PNG"), "more than --max-pixels"),
}


def test_a_hostile_file_is_one_row_with_its_reason(device: Device) -> None:
    whole = list(FILES.values())[:4]
    files = [data for bad, _ in HOSTILE.values() for data in (bad, *whole)]
    context = Context(device, ModelSet({}), frozenset(), max_pixels=178_956_970)
    batch = Batch({"row": np.arange(len(files)), "image": files, "error": [None] * len(files)})
    Header(context)(batch)
    readable = np.array([error is None for error in batch["error"]])
    kept = batch.take(readable)
    Decode(context)(kept)
    rows = dict(zip(kept["row"].tolist(), zip(kept["error"], kept["pixels"], strict=True), strict=True))
    for position, (name, (_, words)) in enumerate(HOSTILE.items()):
        error, pixels = rows.get(5 * position, (batch["error"][5 * position], None))
        assert error and words in error and pixels is None, (name, error)
        for offset, data in enumerate(whole, 1):
            error, pixels = rows[5 * position + offset]
            assert error is None and (pixels == on_white(data)).all(), name


@pytest.mark.parametrize("size", [(1, 1), (30000, 1), (1, 30000), (2, 3)])
def test_odd_sizes_go_all_the_way(device: Device, size: tuple[int, int]) -> None:
    data = [saved(Image.new("RGB", size, "teal"), form) for form in ("JPEG", "PNG")]
    batch = decoded(device, data)
    assert batch["error"] == [None, None]
    assert [pixels.shape for pixels in batch["pixels"]] == [(size[1], size[0], 3)] * 2


def test_a_parquet_file_with_a_broken_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b""], "caption": ["a"]}), path)
    path.write_bytes(path.read_bytes().replace(b"caption", b"cap\xff\xff\xff\xff"))
    with pytest.raises(DanqingError, match="cannot be read as Parquet"):
        find_shards([str(path)])
