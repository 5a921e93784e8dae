"""Runtimes: the libraries that compile and run engines. The first that is installed compiles by default."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.registry import Registry
from danqing.trt_models.card import Card
from danqing.trt_models.run.session import Session

if TYPE_CHECKING:
    from danqing.engine.core.device import Device

Batch = tuple[int, int, int]
"""Minimum, usual and maximum rows of an engine's batch."""
Samples = Sequence[dict[str, np.ndarray]]
"""Real inputs of a model by name, batch by batch."""


@dataclass(frozen=True)
class Job:
    """A request to compile an engine.

    Attributes:
        card: the model.
        onnx: the model's ONNX file.
        target: `cpu` or a GPU architecture, `sm_90`.
        precision: fp32, fp16, bf16, int8 or fp8.
        batch: rows that the engine must take.
        version: the installed version of the runtime.
        level: TensorRT's optimisation level, 0 to 5; None for its default.
        samples: real inputs, to measure the activation ranges of eight-bit engines.
    """

    card: Card
    onnx: Path
    target: str
    precision: str
    batch: Batch
    version: str
    level: int | None = None
    samples: Samples = ()

    def required_samples(self) -> Samples:
        """Returns the samples.

        Raises:
            DanqingError: there are none.
        """
        if not self.samples:
            raise DanqingError(
                f"int8 of {self.card.name} needs real inputs to take ranges from: give shards with --data"
            )
        return self.samples


@dataclass(frozen=True)
class Compiled:
    """A compiled engine that is not written yet.

    Attributes:
        write: writes the engine's file to a path; may do the work of compiling.
        options: how it was compiled, for the record.
        batch: rows that it takes, if not those of the job.
    """

    write: Callable[[Path], None]
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: Batch | None = None


class Runtime(ABC):
    """A library that compiles and runs engines. The class is not instantiated.

    Attributes:
        packages: distributions that contain the library.
        targets: kinds of device that it compiles for, `cpu` and `cuda`.
        file: name of its engines' files.
        portable: whether every version of the library runs the file. A plan runs only on the version that compiled it.
    """

    packages: ClassVar[tuple[str, ...]]
    targets: ClassVar[tuple[str, ...]] = ("cuda",)
    file: ClassVar[str] = "engine.onnx"
    portable: ClassVar[bool] = False

    @classmethod
    def version(cls) -> str | None:
        """Returns the installed version; None if the library is not installed."""
        for package in cls.packages:
            try:
                return metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        return None

    @classmethod
    @abstractmethod
    def open(cls, path: Path, batch: Batch, device: Device) -> Session:
        """Opens an engine's file on the device."""

    @classmethod
    @abstractmethod
    def compile(cls, job: Job) -> Compiled:
        """Compiles a model.

        Raises:
            DanqingError: the runtime does not support the job; the message lists what it supports.
        """


RUNTIMES: Registry[type[Runtime]] = Registry(
    "danqing.runtimes",
    {
        "tensorrt": "danqing.trt_models.builtin_runtimes:TensorRt",
        "tensorrt-rtx": "danqing.trt_models.builtin_runtimes:TensorRtRtx",
        "onnxruntime": "danqing.trt_models.builtin_runtimes:OnnxRuntime",
        "torch": "danqing.trt_models.builtin_runtimes:Torch",
    },
)
