"""Compiles a model's ONNX to an engine for one kind of device, by one of the registered runtimes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.files import building
from danqing.engine.core.logs import say
from danqing.trt_models.card import Card
from danqing.trt_models.compile.plans import this_gpu
from danqing.trt_models.engines import Engine, Engines, is_gpu, runtime_version
from danqing.trt_models.runtimes import RUNTIMES, Job
from danqing.trt_models.store import onnx_path

__all__ = ["PRECISIONS", "compile_engine", "this_gpu"]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
REQUEST = "request"
"""Key of `Engine.options`: a digest of what was asked for, by which another process finds the engine."""


def compile_engine(
    card: Card,
    precision: str,
    target: str,
    batch: tuple[int, int, int] = (1, 8, 64),
    level: int | None = None,
    runtime: str | None = None,
    samples: Iterable[dict[str, np.ndarray]] = (),
) -> Engine:
    """Compiles a model and stores the engine. Recipes use it after it is verified and activated.

    A call that waited for another process, which compiled the same, returns that process's engine.

    Args:
        card: the model.
        precision: one of `PRECISIONS`; on `cpu` ONNX Runtime compiles only int8, as the model itself runs in fp32.
        target: `cpu` or a GPU architecture, `sm_90`. TensorRT compiles for the GPU of this machine, TensorRT-RTX for
            the GPUs that it lists, and ONNX Runtime for any; neither of these needs a GPU.
        batch: minimum, usual and maximum rows of a batch.
        level: TensorRT's optimisation level, 0 to 5; None for TensorRT's default.
        runtime: name of a registered runtime; None takes the first that is installed and compiles for the target.
        samples: real inputs, name → array each, to measure the activation ranges of eight-bit engines.

    Returns:
        The engine, with the SHA-256 of its file.

    Raises:
        DanqingError: the engine cannot be compiled here; the message says what is missing.
    """
    if precision not in PRECISIONS:
        raise DanqingError(f"--precision {precision}; {did_you_mean(precision, PRECISIONS)}")
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise DanqingError(
            f"--batch {','.join(map(str, batch))}: write it as fewest,usual,most rows, for example 1,8,64"
        )
    engines, onnx = Engines(card), onnx_path(card)
    if target != "cpu" and not is_gpu(target):
        raise DanqingError(
            f"--target {target}: write `cpu`, or a GPU's architecture such as sm_80 (A100) or sm_90 (H100)"
        )
    kind = "cpu" if target == "cpu" else "cuda"
    suitable = [name for name, candidate in RUNTIMES.items() if kind in candidate.targets]
    if runtime is not None and runtime not in suitable:
        raise DanqingError(f"--runtime {runtime}: for {target}, {did_you_mean(runtime, suitable)}")
    runtime = runtime or next(name for name in suitable if runtime_version(name))
    version = runtime_version(runtime)
    if version is None:
        raise DanqingError(
            f"--runtime {runtime}: not installed; tensorrt-cu13 is on NVIDIA's own index, tensorrt-rtx-cu13 compiles "
            "without a GPU, torch is pip install 'danqing-engine[torch]', and onnxruntime needs none of them"
        )
    job = Job(card, onnx, target, precision, batch, version, level, list(samples))
    request = _digest(job, runtime)
    with building(engines.folder / request, f"this engine of {card.name}") as waited:
        made = [engine for engine in engines.all() if engine.options.get(REQUEST) == request]
        if waited and made:
            say(f"{made[0].name}: was compiled meanwhile")
            return made[0]
        compiled = RUNTIMES[runtime].compile(job)
        options = {**compiled.options, REQUEST: request}
        rows = compiled.batch or batch
        engine = Engine(card.name, engines.onnx, runtime, version, target, precision, rows, "", options)
        return engines.add(engine, compiled.write)


def _digest(job: Job, runtime: str) -> str:
    """Returns a digest of all that an engine of a model is compiled from."""
    asked = (runtime, job.version, job.target, job.precision, job.batch, job.level)
    digest = xxhash.xxh3_128(repr(asked).encode())
    for sample in job.samples:
        for name, values in sample.items():
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
