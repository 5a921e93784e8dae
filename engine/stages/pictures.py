"""Pictures as one model reads them, outside of a plan: the stages of SCORE up to the resized pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from danqing.engine.core.batch import Batch, pack
from danqing.engine.core.device import Device
from danqing.engine.core.memory import DEFAULT_MAX_PIXELS, Memory
from danqing.engine.stages.base import Context
from danqing.engine.stages.decode import Decode
from danqing.engine.stages.header import Header
from danqing.engine.stages.resize import open_resizer
from danqing.trt_models.card import ImageInput
from danqing.trt_models.model_set import ModelSet


class PictureReader:
    """Decodes pictures and resizes them for a model.

    Args:
        wanted: the model's input.
        device: decodes and resizes.
        max_pixels: larger pictures count as broken.
        resizer: see `open_resizer`.
    """

    def __init__(
        self, wanted: ImageInput, device: Device, max_pixels: int = DEFAULT_MAX_PIXELS, resizer: str = "auto"
    ) -> None:
        memory = Memory.of(device.kind, None, max_pixels)
        context = Context(device, ModelSet({}), frozenset(), max_pixels=max_pixels, memory=memory)
        self._header, self._decode = Header(context), Decode(context)
        self._resize = open_resizer([wanted], device, resizer)
        self._device, self._size = device, wanted.size

    def __call__(self, files: Sequence[bytes]) -> tuple[Any, np.ndarray]:
        """Reads pictures.

        Args:
            files: encoded pictures.

        Returns:
            Pixels of those that can be decoded, uint8 (rows, size, size, 3), on the device; and their positions in
            `files`, int64 (rows,).
        """
        batch = Batch({"row": np.arange(len(files)), "image": list(files), "error": [None] * len(files)})
        self._header(batch)
        batch = batch.take(np.array([error is None for error in batch["error"]], bool))
        rows, pixels = [np.empty(0, np.int64)], [self._device.xp.empty((0, self._size, self._size, 3), np.uint8)]
        for part in pack([batch], self._decode.capacity, self._decode.weights):
            self._decode(part)
            part = part.take(part["decodable"] == 1)
            if len(part):
                rows.append(part["row"])
                pixels += self._resize(part["pixels"])
        return self._device.xp.concatenate(pixels), np.concatenate(rows)
