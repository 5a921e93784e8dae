"""Batches of training pairs: read and decoded ahead of the training, by the engine's own decoder and resizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from danqing.engine.core.device import Device, open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.spans import Spans
from danqing.engine.core.text_column import TextColumn
from danqing.engine.score.overlap import Overlap
from danqing.engine.stages.pictures import PictureReader
from danqing.engine.train.order import CAPTIONS, Order, Place, hashed
from danqing.engine.train.ranks import Ranks
from danqing.engine.train.shards import OpenShard, TrainShard
from danqing.trt_models.card import ImageInput
from danqing.trt_models.run.tokenizer import AnyTokenizer

AHEAD = 3
"""Batches that are ready before the training asks for them."""
MAX_REPLACED = 100
"""Broken pictures in a row after which the training stops: the shards are damaged, not single pictures."""


@dataclass(frozen=True)
class TrainBatch:
    """A rank's part of a global batch.

    Attributes:
        pixels: uint8 (pairs, size, size, 3), on the training's device.
        tokens: int64 (pairs, length), on the same device.
        uids: of the pairs.
        replaced: pairs whose picture was broken, so that another pair has their place.
    """

    pixels: torch.Tensor
    tokens: torch.Tensor
    uids: list[str]
    replaced: int


@dataclass
class Loader:
    """Makes the batches of a rank.

    Attributes:
        shards: those that `order` numbers.
        index: folder of their indexes.
        order: of the pairs.
        image_input: of the model.
        tokenizer: of the model.
        ranks: this process among the others: its part of every batch, and its devices.
        recaption_share: see `TrainRecipe`.
        threads: host threads; None: all cores.
    """

    shards: Sequence[TrainShard]
    index: Path
    order: Order
    image_input: ImageInput
    tokenizer: AnyTokenizer
    ranks: Ranks
    recaption_share: float = 0.0
    threads: int | None = None

    @contextmanager
    def batches(self, steps: range) -> Iterator[Iterator[TrainBatch]]:
        """Makes the batches of some steps in a thread, at most `AHEAD` in advance, during a `with` block."""
        with Overlap(Spans(), AHEAD) as overlap:
            yield map(_owned_by_this_stream, overlap.prefetch(self._made(steps), "train"))

    def _made(self, steps: range) -> Iterator[TrainBatch]:
        opened: dict[int, OpenShard] = {}
        try:
            with open_device(self.ranks.decoder, self.threads) as device:
                read = PictureReader(self.image_input, device)
                for step in steps:
                    places = self.order.places(step, *self.ranks.part(self.order.batch))
                    self._open_windows(device, opened, places)
                    yield self._batch(device, read, opened, places)
        finally:
            for shard in opened.values():
                shard.close()

    def _open_windows(self, device: Device, opened: dict[int, OpenShard], places: list[Place]) -> None:
        """Opens the shards of the places' windows, and closes others."""
        windows = {(place.epoch, place.window): place for place in places}.values()
        wanted = {shard for place in windows for shard in self.order.window_of(place)}
        for number in opened.keys() - wanted:
            opened.pop(number).close()
        missing = sorted(wanted - opened.keys())
        opened |= zip(missing, device.map(lambda n: OpenShard(self.shards[n], self.index), missing), strict=True)

    def _batch(
        self, device: Device, read: PictureReader, opened: dict[int, OpenShard], places: list[Place]
    ) -> TrainBatch:
        size = self.image_input.size
        pixels = device.xp.empty((len(places), size, size, 3), np.uint8)
        left, replaced = np.arange(len(places)), 0

        def image(position: int) -> bytes:
            shard, row = self.order.row(places[position])
            return opened[shard].image(row)

        for _ in range(MAX_REPLACED):
            made, rows = read(device.map(image, left.tolist()))
            pixels[device.up(left[rows])] = made
            left = np.delete(left, rows)
            if not len(left):
                break
            replaced += len(left)
            for position in left.tolist():
                places[position] = self.order.replacement(places[position])
        else:
            table = self.shards[self.order.row(places[int(left[0])])[0]].table
            raise DanqingError(
                f"{table}: neither a pair's picture nor those of {MAX_REPLACED - 1} others in its place can be "
                "decoded; run `danqing write` again"
            )
        pairs = [self.order.row(place) for place in places]
        uids = [opened[shard].uids[row] for shard, row in pairs]
        recaptioned = self._recaptioned(uids, places[0].epoch)  # a batch is of one epoch
        texts = [opened[s].text(row, other) for (s, row), other in zip(pairs, recaptioned, strict=True)]
        ids = self.tokenizer.encode(TextColumn.of(texts), device).ids
        return TrainBatch(*self._to_torch(device, pixels, device.down(ids)), uids, replaced)

    def _recaptioned(self, uids: list[str], epoch: int) -> list[bool]:
        """Draws which pairs have their recaption as text, by uid and epoch."""
        numbers = np.array([int(uid[:16], 16) for uid in uids], np.uint64)
        drawn = hashed(numbers, CAPTIONS, self.order.seed, epoch)
        chosen: list[bool] = (drawn / 2.0**64 < self.recaption_share).tolist()
        return chosen

    @cached_property
    def _stream(self) -> Any:
        """The stream of all batches, since PyTorch gives freed memory only to the stream that it was allocated on.

        The training's own stream has a queue of kernels to wait for.
        """
        open_stream: Any = torch.cuda.Stream
        return open_stream(self.ranks.device)

    def _to_torch(self, device: Device, pixels: Any, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Hands a batch to PyTorch; on a GPU in memory of its own, since CuPy frees its in the order of its stream."""
        device.wait()  # else `from_dlpack` would make the current stream, the training's, wait for the pixels
        found, tokens = from_dlpack(pixels), torch.from_numpy(ids.astype(np.int64))
        place = self.ranks.device
        if place.type == "cpu":
            return found, tokens
        with torch.cuda.stream(self._stream):
            found = found.clone() if found.is_cuda else found.pin_memory().to(place, non_blocking=True)
            tokens = tokens.pin_memory().to(place, non_blocking=True)
        self._stream.synchronize()
        return found, tokens


def _owned_by_this_stream(batch: TrainBatch) -> TrainBatch:
    """Keeps the memory of a batch, allocated on another stream, until the current stream has read it."""
    if batch.pixels.is_cuda:
        stream = torch.cuda.current_stream()
        batch.pixels.record_stream(stream)
        batch.tokens.record_stream(stream)
    return batch
