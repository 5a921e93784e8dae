"""How to score, beside the recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from danqing.engine.core.device import Device, kind_of
from danqing.engine.core.memory import Memory
from danqing.engine.sources import Layout
from danqing.engine.stages import Context
from danqing.engine.stages.dictionary import file_hash
from danqing.engine.stages.resize import chosen_resizer
from danqing.engine.stages.source import read_blocklist
from danqing.trt_models.model_set import ModelSet

DEFAULT_MAX_PIXELS = 178_956_970
"""Where Pillow, too, refuses a picture as a decompression bomb."""


@dataclass(frozen=True)
class Settings:
    """How to score, beside the recipe. What can change a score is part of the run's identity.

    `user_dictionaries`: words that jieba does not know, in its format. `devices`: those that score, if more than one.
    `strict_engines`: raise an error if an engine in use does not open. `resizer`: see `open_resizer`. `limit`: use only
    the first rows of the input.
    """

    layout: Layout = field(default_factory=Layout)
    blocklist: Path | None = None
    user_dictionaries: tuple[Path, ...] = ()
    score_everything: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS
    device: str = "cpu"
    devices: tuple[str, ...] = ()
    threads: int | None = None
    memory_limit: int | None = None
    strict_engines: bool = False
    resizer: str = "auto"
    metrics_port: int | None = None
    metrics_address: str = "127.0.0.1"
    limit: int | None = None

    @cached_property
    def blocked_domains(self) -> frozenset[str]:
        return read_blocklist(self.blocklist) if self.blocklist else frozenset()

    def rules(self) -> dict[str, Any]:
        """What captions and URLs are judged by, as hashes."""
        blocked = "\n".join(sorted(self.blocked_domains)).encode()
        return {
            "blocklist": hashlib.sha256(blocked).hexdigest()[:16] if blocked else None,
            "user_dictionaries": [file_hash(path)[:16] for path in self.user_dictionaries],
        }

    @property
    def resizers(self) -> list[str]:
        """Names of the resizers of the devices that score. `kernel` gives equal pixels on all devices, `dali` not."""
        return sorted({chosen_resizer(self.resizer, kind_of(name)) for name in self.devices or (self.device,)})

    def context(self, device: Device, models: ModelSet, wanted: Iterable[str]) -> Context:
        memory = Memory.of(device.kind, self.memory_limit, self.max_pixels)
        return Context(
            device, models, frozenset(wanted), self.blocked_domains, self.max_pixels, self.user_dictionaries, memory,
            self.resizer,
        )  # fmt: skip
