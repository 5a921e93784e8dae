"""Batch sizes for each kind of device: large enough to keep it busy, small enough for its memory.

The tiles and blocks of near-duplicate search are in `engine.decide.dedup.products`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSizes:
    """Upper bounds on the batches of one kind of device.

    Attributes:
        caption_bytes: bytes of UTF-8 in one launch of the text kernels, plus 32 for every caption
            (`engine.stages.text.CaptionStage`). In a batch that has pictures, `encoded_bytes` can be reached first.
        frame_rows: captions in one launch of `engine.select.frames`.
        encoded_bytes: bytes of encoded pictures in one batch, as it is read.
        pixels: pixels decoded in one batch.
        resized_pictures: pictures in one run of the DALI graph.
    """

    caption_bytes: int
    frame_rows: int
    encoded_bytes: int
    pixels: int
    resized_pictures: int


BATCH_SIZES = {
    # About 500 captions, or ten pictures of three megapixels: enough for a few cores, as many batches are in flight.
    "cpu": BatchSizes(
        caption_bytes=1 << 16, frame_rows=1 << 12, encoded_bytes=32 << 20, pixels=32_000_000, resized_pictures=32
    ),
    # About 17,000 captions: 4 warps for each of an H100's 132 multiprocessors. The text kernels use 30 bytes of working
    # memory per byte of text: 100 MB. 64 M pixels are 244 pictures of 512 × 512: an H200 decodes batches of 256 at its
    # full rate, and the models start sooner than with batches of 976 (BENCHMARKS.md).
    "cuda": BatchSizes(
        caption_bytes=1 << 21,
        frame_rows=1 << 20,
        encoded_bytes=32 << 20,
        pixels=64_000_000,
        resized_pictures=128,
    ),
}
