"""A model in training as two towers, so that `engine.evaluate` can measure it without an export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from danqing.engine.core.device import Device, open_device
from danqing.engine.core.text_column import TextColumn
from danqing.engine.evaluate.datasets import Suite
from danqing.engine.evaluate.evaluation import evaluate
from danqing.engine.stages.pictures import PictureReader
from danqing.engine.train.model import SiglipTowers, Source

ROWS = 256
"""Pictures or texts that are embedded at a time."""


class TrainedTowers:
    """The towers of a model in training, as `engine.evaluate.towers.Towers`; float32, without autocast.

    Args:
        name: names the model in tables and files.
        model: a `transformers.SiglipModel`.
        source: has its preprocessing.
        device: decodes and tokenizes.
    """

    def __init__(self, name: str, model: Any, source: Source, device: Device) -> None:
        self.name, self._towers, self._device = name, SiglipTowers(model), device
        self._read, self._tokenizer = PictureReader(source.image_input, device), source.tokenizer()
        self._place = next(model.parameters()).device

    @torch.no_grad()
    def images(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Embeds encoded pictures: float32 (n, d), unit rows; zeros for a picture that does not decode."""
        pixels, rows = self._read(pictures)
        self._device.wait()
        found = self._embedded(self._towers.image_features, from_dlpack(pixels).to(self._place))
        vectors = np.zeros((len(pictures), found.shape[1]), np.float32)
        vectors[rows] = found
        return vectors

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts: float32 (n, d), unit rows."""
        ids = self._device.down(self._tokenizer.encode(TextColumn.of(list(texts)), self._device).ids)
        return self._embedded(self._towers.text_features, torch.from_numpy(ids.astype(np.int64)).to(self._place))

    def _embedded(self, embed: Any, inputs: torch.Tensor) -> np.ndarray:
        width = self._towers.model.config.vision_config.hidden_size
        parts = [embed(inputs[start : start + ROWS]).cpu().numpy() for start in range(0, len(inputs), ROWS)]
        return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)


class _Reading:
    """Towers without a model: they decode pictures until there is one that can be decoded."""

    name = ""

    def __init__(self, read: PictureReader) -> None:
        self._read, self._decodes = read, False

    def images(self, pictures: Sequence[bytes]) -> np.ndarray:
        self._decodes = self._decodes or len(self._read(pictures)[1]) > 0
        return np.full((len(pictures), 1), float(self._decodes), np.float32)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 1), np.float32)


def check_suite(suite: Suite, source: Source, decoder: str) -> None:
    """Reads all of a suite before a training that ends with its evaluation; decodes no more than it must.

    Args:
        suite: the suite.
        source: has the model's preprocessing.
        decoder: name of the device that decodes.

    Raises:
        DanqingError: as `engine.evaluate.evaluation.evaluate`.
    """
    with open_device(decoder) as device:
        for dataset in suite.datasets:
            evaluate(_Reading(PictureReader(source.image_input, device)), Suite(suite.name, (dataset,)))


@contextmanager
def trained_towers(name: str, model: Any, source: Source, decoder: str) -> Iterator[TrainedTowers]:
    """Opens the towers of a model in training during a `with` block; `decoder` names the device that decodes."""
    with open_device(decoder) as device:
        yield TrainedTowers(name, model, source, device)
