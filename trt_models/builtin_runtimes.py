"""The engine's own runtimes. What compiles, and torch, is imported when it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.run.session import Session, TensorRtSession, open_session
from danqing.trt_models.runtimes import Batch, Compiled, Job, Runtime

if TYPE_CHECKING:
    from danqing.engine.core.device import Device


class TensorRt(Runtime):
    packages: ClassVar[tuple[str, ...]] = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
    file = "engine.plan"
    module: ClassVar[str] = "tensorrt"

    @classmethod
    def open(cls, path: Path, batch: Batch, device: Device) -> Session:
        return TensorRtSession(path, cls.module, batch[2], device)

    @classmethod
    def compile(cls, job: Job) -> Compiled:
        from danqing.trt_models.compile.plans import build_plan  # imports onnx

        return Compiled(lambda file: build_plan(cls.module, job, file), {"level": job.level})


class TensorRtRtx(TensorRt):
    packages = ("tensorrt-rtx", "tensorrt-rtx-cu13")
    module = "tensorrt_rtx"


class OnnxRuntime(Runtime):
    packages = ("onnxruntime", "onnxruntime-gpu")
    targets = ("cpu", "cuda")
    portable = True

    @classmethod
    def open(cls, path: Path, batch: Batch, device: Device) -> Session:
        return open_session(path, device, batch[2 if device.kind == "cuda" else 1], tf32=True)

    @classmethod
    def compile(cls, job: Job) -> Compiled:
        from danqing.trt_models.compile.graphs import fused_graph, quantised_graph  # imports onnx

        return quantised_graph(job) if job.target == "cpu" else fused_graph(job)


class Torch(Runtime):
    packages = ("torch",)
    targets = ("cpu", "cuda")
    portable = True
    precisions: ClassVar[Mapping[str, tuple[str, ...]]] = {"cpu": ("fp32", "bf16"), "cuda": ("fp16", "bf16")}

    @classmethod
    def open(cls, path: Path, batch: Batch, device: Device) -> Session:
        from danqing.trt_models.run.torch_session import open_torch_session  # imports torch

        return open_torch_session(path, device, batch)

    @classmethod
    def compile(cls, job: Job) -> Compiled:
        precisions = cls.precisions["cpu" if job.target == "cpu" else "cuda"]
        if job.precision not in precisions:
            raise DanqingError(f"--precision {job.precision}: on {job.target} torch runs {' or '.join(precisions)}")
        from danqing.trt_models.run.torch_session import write_graph

        return Compiled(lambda file: write_graph(job.onnx, file, job.precision))
