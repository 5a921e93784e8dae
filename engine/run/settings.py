"""Settings of a command: how to score, and on which devices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from danqing.engine.core.device import Device, kind_of, resolve_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.memory import DEFAULT_MAX_PIXELS, Memory
from danqing.engine.run.claims import read_share
from danqing.engine.run.part import Share
from danqing.engine.sources import Layout
from danqing.engine.sources.text import check_encoding
from danqing.engine.stages import Context
from danqing.engine.stages.dictionary import file_hash
from danqing.engine.stages.resize import chosen_resizer
from danqing.engine.stages.source import read_blocklist
from danqing.engine.stages.vlm.client import Server
from danqing.engine.stages.vlm.endpoint import parse_address
from danqing.kernels.text.hosts import build_domains
from danqing.trt_models.model_set import ModelSet


@dataclass(frozen=True)
class Settings:
    """How to score, beside the recipe. Settings that can change a score are part of the run's identity.

    Attributes:
        layout: which parts of a sample are the image and the caption.
        blocklist: file of blocked domains, one a line.
        user_dictionaries: files of words that jieba does not know, in jieba's format.
        score_everything: no gates; every score of every row.
        max_pixels: images with more pixels are refused.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        devices: the devices of the scoring processes, one process each; empty for one device in this process.
        threads: host threads; None for all cores.
        memory_limit: bytes of resident host memory that scoring keeps to; None for no limit.
        strict_engines: a compiled engine that does not open is an error; by default the one before it is used.
        resizer: `auto`, `dali` or `kernel`, see `open_resizer`.
        metrics_port, metrics_address: where Prometheus metrics are served; None for nowhere.
        limit: only the first rows of the input are used; None for all.
        force: an interrupted run is resumed although versions changed that can change scores.
        part: only the shards of this part are scored; None for all.
        ray: address of the Ray cluster that scores (`engine.run.cluster.connected`); empty for this machine.
        workers_per_gpu: workers that share a GPU of the Ray cluster.
        vlm: the vision-language model that criteria ask; None without one.
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
    force: bool = False
    part: Share | None = None
    ray: str = ""
    workers_per_gpu: int = 1
    vlm: Server | None = None

    @cached_property
    def blocked_domains(self) -> pa.LargeStringArray:
        """The domains of the block list, distinct and sorted."""
        return read_blocklist(self.blocklist) if self.blocklist else pa.array([], pa.large_string())

    def rules(self) -> dict[str, Any]:
        """Hashes of the block list and the user dictionaries, for the run's identity."""
        domains = self.blocked_domains
        lines = pa.LargeListArray.from_arrays([0, len(domains)], domains)
        listed = pc.binary_join(lines, pa.scalar("\n", pa.large_string()))
        return {
            "blocklist": hashlib.sha256(listed[0].as_buffer()).hexdigest()[:16] if len(domains) else None,
            "user_dictionaries": [file_hash(path)[:16] for path in self.user_dictionaries],
        }

    @property
    def resizers(self) -> list[str]:
        """Names of the scoring devices' resizers: `kernel` gives equal pixels on all devices, `dali` does not."""
        return sorted({chosen_resizer(self.resizer, kind_of(name)) for name in self.devices or (self.device,)})

    def context(self, device: Device, models: ModelSet, wanted: Iterable[str]) -> Context:
        """Makes what the stages share on an open device.

        Args:
            device: runs the stages.
            models: the recipe's models.
            wanted: names of the columns to compute.
        """
        memory = Memory.of(device.kind, self.memory_limit, self.max_pixels)
        domains = build_domains(self.blocked_domains) if len(self.blocked_domains) else None
        return Context(
            device,
            models,
            frozenset(wanted),
            domains,
            self.max_pixels,
            self.user_dictionaries,
            memory,
            self.resizer,
            self.vlm,
        )


def settings_from(options: Mapping[str, Any]) -> Settings:
    """Makes settings from options named like the flags of the commands.

    Args:
        options: the names are those of `Settings` and `image_key`, `caption_key`, `encoding`, `follow_links`, `devices`
            (`"a,b"`, `"a;b"` or a list), `user_dict` (paths), `part` (`"I/N"` or `"any"`), and those of `Server` with
            the prefix `vlm_`. An option that is missing or None has its default, `device` the default `auto`.

    Returns:
        The settings; `auto` is resolved to a device of this machine.
    """
    given = {name: value for name, value in options.items() if value is not None}
    layout = Layout(
        tuple(key.lstrip(".") for key in _items(given.pop("image_key", ()))) or Layout.image_keys,
        tuple(key.lstrip(".") for key in _items(given.pop("caption_key", ()))) or Layout.caption_keys,
        check_encoding(given.pop("encoding", None) or ""),
        given.pop("follow_links", False),
    )
    device = given.pop("device", "auto")
    names = [f"cuda:{name}" if name.isdecimal() else name for name in _items(given.pop("devices", ()))]
    if given.get("ray") and names:
        raise DanqingError("--ray: every GPU of the cluster gets a worker; leave --devices out")
    workers = 1 if given.get("ray") else given.pop("workers_per_gpu", 1)
    devices = (*map(resolve_device, names or [device]),) * workers
    part = read_share(given.pop("part", ""))
    if part:
        part.check_ray(given.get("ray", ""))
    return Settings(
        layout=layout,
        vlm=server_from(given),
        part=part,
        device=devices[0],
        devices=devices if len(devices) > 1 else (),
        user_dictionaries=tuple(given.pop("user_dict", ())),
        **given,
    )


def server_from(given: dict[str, Any]) -> Server | None:
    """Takes `vlm_endpoint` (addresses as `devices` are written), `vlm_model` and `vlm_concurrency` out of options.

    Raises:
        DanqingError: see `parse_address`.
    """
    addresses = tuple(_items(given.pop("vlm_endpoint", ())))
    for address in addresses:
        parse_address(address)
    rest = {name: given.pop(f"vlm_{name}") for name in ("model", "concurrency") if f"vlm_{name}" in given}
    return Server(addresses, **rest) if addresses else None


def _items(value: str | Iterable[str | int]) -> list[str]:
    words = value.replace(";", ",").split(",") if isinstance(value, str) else map(str, value)
    return [word.strip() for word in words if word.strip()]
