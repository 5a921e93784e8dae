"""Fingerprints of a picture: of its bytes and of its content. Criteria can use them to find duplicates."""

from __future__ import annotations

import hashlib

import numpy as np

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.stages.base import Stage
from danqing.trt_models.card import ImageInput

HASHED = ImageInput(32, 32, "stretch", "lanczos")
"""The small picture that a perceptual hash is made of, scaled as imagehash does it."""


class Digest(Stage):
    """`sha256` of the encoded bytes: 64 hex digits, as img2dataset writes it."""

    name = "digest"
    needs = ("image",)
    produces = produced("sha256")

    def __call__(self, batch: Batch) -> None:
        digests = self.context.device.map(hashlib.sha256, batch["image"])
        batch["sha256"] = [digest.hexdigest() for digest in digests]


class PerceptualHash(Stage):
    """`perceptual_hash`, 64 bits: the hashes of similar pictures differ in few bits (Hamming distance).

    This is pHash as in the package imagehash: the 8 × 8 lowest frequencies of the DCT of the 32 × 32 grey picture. A
    bit is 1 if its frequency is above the median. Bits are in row order, the highest bit first.
    """

    name = "perceptual hash"
    needs = ("hash_input",)
    image_inputs = {"hash_input": HASHED}
    produces = produced("perceptual_hash")

    def __call__(self, batch: Batch) -> None:
        xp, up = self.context.device.xp, self.context.device.up
        grey = batch["hash_input"].astype(xp.float64) @ up((0.299, 0.587, 0.114))  # ITU-R BT.601
        cosines = up(COSINES)
        low = (cosines @ grey @ cosines.T).reshape(-1, 64)
        above = low > xp.median(low, axis=1, keepdims=True)
        batch["perceptual_hash"] = above.astype(xp.uint64) @ up(BIT_VALUES)


COSINES = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(HASHED.size) + 1) / (2 * HASHED.size))
"""The first eight rows of the DCT-II, float64 (8, 32), without scale factors, which would change no bit."""
BIT_VALUES = np.uint64(1) << np.arange(63, -1, -1, dtype=np.uint64)
