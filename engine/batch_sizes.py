"""How much work each kind of device is given at a time: enough to keep it busy, no more than it has memory for.

Near-duplicate search has tiles and blocks of its own: `engine.dedup.products`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSizes:
    """The largest batches of one kind of device.

    Attributes:
        caption_characters: of one launch of the text kernels, with 32 for every caption; see
            `engine.stages.text.CaptionStage`. Where pictures wait with their captions, `encoded_bytes` ends a batch
            sooner.
        frame_rows: captions of one launch in `engine.frames`.
        encoded_bytes: of pictures as they were read.
        pixels: decoded at a time.
        resized_pictures: in one pass of DALI's graph.
    """

    caption_characters: int
    frame_rows: int
    encoded_bytes: int
    pixels: int
    resized_pictures: int


BATCH_SIZES = {
    # About 500 captions, ten pictures of three megapixels: work for a few cores, of which many batches wait at a time.
    "cpu": BatchSizes(
        caption_characters=1 << 15, frame_rows=1 << 12, encoded_bytes=32 << 20, pixels=32_000_000, resized_pictures=32
    ),
    # About 17,000 captions: 4 warps for each of an H100's 132 multiprocessors. The text kernels' working memory is
    # thirty bytes a byte of text: 100 MB. 244 pictures of 512 × 512 are decoded at a time: an H200 decodes as many a
    # second of 256 as of more, and the models start sooner than behind 976 (BENCHMARKS.md).
    "cuda": BatchSizes(
        caption_characters=1 << 20,
        frame_rows=1 << 20,
        encoded_bytes=32 << 20,
        pixels=64_000_000,
        resized_pictures=128,
    ),
}
