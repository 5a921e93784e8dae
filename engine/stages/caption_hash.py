"""Hash of the clean caption. Criteria can use it to find equal captions."""

from __future__ import annotations

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.core.text_column import TextColumn
from danqing.engine.stages.base import Stage
from danqing.kernels.text.hashes import hash_texts


class CaptionHash(Stage):
    """`caption_hash` of `text_clean`: 32 hex digits, as the package mmh3 computes them; empty for an empty caption.

    Of 10^9 different captions, two have the same 128 bits with a probability of 1.5 · 10^-21; with 64 bits it would be
    2.7 %.
    """

    name = "caption hash"
    needs = ("text_clean",)
    produces = produced("caption_hash")

    def __call__(self, batch: Batch) -> None:
        device = self.context.device
        batch["caption_hash"] = TextColumn.made(hash_texts(device, batch["text_clean"].strings(device)), device)
