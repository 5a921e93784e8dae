from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.stages.base import Context
from danqing.engine.stages.decode import CpuDecoder, Decode
from danqing.engine.stages.header import Header
from danqing.engine.stages.resize import BatchResizer, DaliResizer, KernelResizer, chosen_resizer, open_resizer
from danqing.trt_models.card import ImageInput
from danqing.trt_models.model_set import ModelSet
from tests.conftest import picture


def context(device: Device, max_pixels: int = 10**8) -> Context:
    return Context(device, ModelSet({}), frozenset(), max_pixels=max_pixels)


def through_header(device: Device, images: Sequence[bytes], max_pixels: int = 10**8) -> Batch:
    batch = Batch({"row": np.arange(len(images)), "image": list(images), "error": [None] * len(images)})
    Header(context(device, max_pixels))(batch)
    return batch


def decoded(device: Device, images: Sequence[bytes]) -> Batch:
    batch = through_header(device, images)
    assert batch["error"] == [None] * len(images)
    Decode(context(device))(batch)
    return batch


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_the_header_has_size_format_and_orientation(device: Device) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(Image.open(io.BytesIO(picture(1))), "JPEG", exif=exif)
    batch = through_header(device, [picture(1), picture(1, form="PNG"), turned])
    assert batch["decode_format"] == ["JPEG", "PNG", "JPEG"]
    assert batch["width"].tolist() == [160, 160, 120] and batch["height"].tolist() == [120, 120, 160]
    assert batch["shortest_edge"].tolist() == [120] * 3
    np.testing.assert_allclose(batch["aspect_ratio"], [4 / 3, 4 / 3, 3 / 4])


def test_a_file_that_is_not_a_picture_is_an_error_of_its_row(device: Device) -> None:
    batch = through_header(device, [b"", b"<!DOCTYPE html><p>404", b"%PDF-1.7", b"\x00\x01junk", picture(1)])
    assert batch["readable"].tolist() == [0, 0, 0, 0, 1]
    for error, words in zip(
        batch["error"], ("no picture", "an HTML page", "a PDF", "bytes starting with 00 01"), strict=False
    ):
        assert words in error
    assert batch["error"][4] is None


def test_decompression_bombs_are_refused_by_their_header(device: Device) -> None:
    bomb = saved(Image.new("1", (5000, 5000)), "PNG")
    batch = through_header(device, [bomb, picture(1)], max_pixels=1_000_000)
    assert "5000×5000 pixels" in batch["error"][0] and batch["error"][1] is None


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_pixels_equal_those_of_pillow(device: Device, form: str) -> None:
    data = picture(3, form=form)
    batch = decoded(device, [data])
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert batch["decodable"].tolist() == [1]
    assert (batch["pixels"][0] == expected).all()


def test_orientation_is_applied_and_alpha_is_composited_on_white(device: Device) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(Image.open(io.BytesIO(picture(1))), "JPEG", exif=exif)
    clear = Image.new("RGBA", (40, 30), (10, 20, 30, 0))
    clear.putpixel((0, 0), (10, 20, 30, 255))
    batch = decoded(device, [turned, saved(clear, "PNG"), saved(clear, "WEBP", lossless=True)])
    assert batch["pixels"][0].shape == (160, 120, 3)
    for transparent in batch["pixels"][1:]:
        assert transparent[0, 0].tolist() == [10, 20, 30] and transparent[5, 5].tolist() == [255, 255, 255]


def test_a_broken_picture_only_fails_its_row(device: Device) -> None:
    whole = [picture(i) for i in range(4)]
    cut = [picture(9)[: len(picture(9)) // 2], picture(9, form="PNG")[:-2000]]
    batch = decoded(device, [whole[0], cut[0], whole[1], whole[2], cut[1], whole[3]])
    assert batch["decodable"].tolist() == [1, 0, 1, 1, 0, 1]
    assert all("cannot be decoded" in batch["error"][row] for row in (1, 4))
    for row, data in zip((0, 2, 3, 5), whole, strict=True):
        assert (batch["pixels"][row] == np.asarray(Image.open(io.BytesIO(data)))).all()


def test_the_codec_alone_gets_only_the_files_that_it_decodes(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = ("JPEG", "JPEG2000", "PNG", "GIF", "WEBP", "TIFF", "BMP", "ICO")
    files = [picture(1, form=form) for form in forms]
    batch = through_header(device, files)
    stage = Decode(context(device))
    given: list[bytes] = []
    monkeypatch.setattr(stage.decoder, "decode", given.extend)
    run = stage.vendor_part(batch)
    assert run is not None and run() == 3 and given == [files[0], files[2], files[4]]
    assert stage.vendor_part(batch.take(np.array([1, 3, 5]))) is None


def test_a_picture_of_another_size_than_its_header_says_is_an_error(device: Device) -> None:
    batch = through_header(device, [picture(1), picture(1, form="GIF"), picture(2)])
    batch["width"][:2] += 1
    Decode(context(device))(batch)
    assert [error is None for error in batch["error"]] == [False, False, True]
    assert "another size than the header says" in batch["error"][0] and batch["decodable"].tolist() == [0, 0, 1]


def reference_resize(pixels: np.ndarray, wanted: ImageInput) -> np.ndarray:
    """The preprocessing of the models, with Pillow."""
    image = Image.fromarray(pixels)
    filters = {"cubic": Image.Resampling.BICUBIC, "linear": Image.Resampling.BILINEAR}
    if wanted.fit == "shorter-edge":
        scale = wanted.resize / min(image.size)
        size = (int(image.width * scale), int(image.height * scale))
    else:
        size = (wanted.resize, wanted.resize)
    # First the width, then the height, which is what one call does in Pillow before 13.
    for step in ((size[0], image.height), size):
        image = image.resize(step, filters[wanted.interpolation])
    if wanted.jpeg_quality:
        image = Image.open(io.BytesIO(saved(image, "JPEG", quality=wanted.jpeg_quality)))
    left, top = (image.width - wanted.size) // 2, (image.height - wanted.size) // 2
    return np.asarray(image.crop((left, top, left + wanted.size, top + wanted.size)))


INPUTS = [ImageInput(224, 256), ImageInput(224, 256, "stretch", "linear", 75)]


def colourful(size: tuple[int, int]) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))


SIZES = pytest.mark.parametrize("size", [(640, 480), (501, 375), (375, 501), (300, 300), (997, 341), (90, 110)])


@SIZES
def test_resized_pictures_are_bit_equal_to_pillow(device: Device, size: tuple[int, int]) -> None:
    pixels = colourful(size)
    for resizer in (KernelResizer(INPUTS, device), BatchResizer(INPUTS, device)):
        for wanted, output in zip(INPUTS, resizer([pixels, pixels]), strict=True):
            assert output.shape == (2, 224, 224, 3)
            assert (output == reference_resize(pixels, wanted)).all()


def test_the_requested_resizer_is_opened(device: Device) -> None:
    assert [chosen_resizer("auto", kind) for kind in ("cpu", "cuda")] == ["kernel", "dali"]
    assert chosen_resizer("kernel", "cuda") == "kernel"
    assert isinstance(open_resizer(INPUTS, device), KernelResizer)
    assert isinstance(open_resizer(INPUTS, device, "dali"), DaliResizer)
    assert isinstance(open_resizer(INPUTS, replace(device, kind="cuda"), "kernel"), BatchResizer)


@SIZES
def test_dali_agrees_with_the_kernels(device: Device, size: tuple[int, int]) -> None:
    pixels = colourful(size)
    pairs = zip(DaliResizer(INPUTS, device)([pixels]), KernelResizer(INPUTS, device)([pixels]), (0.5, 1.5), strict=True)
    for dalis, ours, tolerance in pairs:
        # In such noise the JPEG round trip amplifies differences of one level; on photographs the mean is 0.1 to 0.9.
        assert np.abs(dalis.astype(int) - ours).mean() < tolerance


def test_dali_accepts_rows_with_padding(device: Device) -> None:
    """nvJPEG pads rows, and DALI refuses strided pictures."""
    pixels = colourful((512, 300))
    padded = pixels[:, :-3]
    assert not padded.flags.c_contiguous
    resize = DaliResizer(INPUTS, device)
    for found, expected in zip(resize([padded]), resize([padded.copy()]), strict=True):
        assert (found == expected).all()


def test_models_agree_on_pictures_resized_by_dali(device: Device) -> None:
    """On the photographs of the demo: cosine of the embeddings at least 0.999, compared with Pillow's pixels."""
    models = ModelSet(load_recipe("embedded").models)
    roles = ("image_embedding", "image_safety")
    inputs = [models.image_input(role) for role in roles]
    folder = Path(str(resources.files("danqing.engine"))) / "demo" / "photos"
    photographs = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.jpg"))]
    ours, dalis = KernelResizer(inputs, device)(photographs), DaliResizer(inputs, device)(photographs)
    assert all(np.abs(a.astype(int) - b).mean() < 1 for a, b in zip(ours, dalis, strict=True))
    (seen, safe), (also_seen, also_safe) = (
        [models.session(role, device).run(pixels=pixels) for role, pixels in zip(roles, resized, strict=True)]
        for resized in (ours, dalis)
    )
    for name in ("embedding", "features"):
        assert (seen[name] * also_seen[name]).sum(axis=1).min() > 0.999
    assert np.abs(safe["probability"] - also_safe["probability"]).max() < 0.02


def test_truncated_jpeg_files_are_left_to_pillow(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    class Codec:
        def decode(self, files: list[bytes], params: object) -> list[np.ndarray]:
            return [np.zeros((1, 1, 3), np.uint8)] * len(files)

    whole, decoder = picture(1), CpuDecoder(device)
    monkeypatch.setattr(decoder, "decoders", [Codec(), Codec()])
    decoded = decoder.decode([whole, whole[:900], whole, whole[:-2]])  # the codec leaks memory for them
    assert [found is not None for found in decoded] == [True, False, True, False]
