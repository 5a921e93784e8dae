"""Engines of ONNX Runtime: the model's graph, quantized for a CPU or fused and lowered to 16 bits for a GPU."""

from __future__ import annotations

from pathlib import Path

import onnx

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit
from danqing.trt_models.compile.onnx_fusion import fuse
from danqing.trt_models.compile.quantise import is_convolutional, quantise_dynamically, quantise_statically
from danqing.trt_models.precision import FUSED_EXACT_OPS, HALVES, halved
from danqing.trt_models.runtimes import Compiled, Job

MAX_ONNX_BYTES = 1 << 31
"""Size limit of one ONNX file, which is a protobuf message."""


def quantised_graph(job: Job) -> Compiled:
    """Quantizes a model to int8 for CPUs, convolutions with fixed activation ranges and transformers without.

    Raises:
        DanqingError: another precision, or a convolutional model without samples.
    """
    if job.precision != "int8":
        raise DanqingError(
            f"--precision {job.precision}: on a CPU the model itself runs in fp32; only int8 is compiled"
        )
    if is_convolutional(onnx.load(str(job.onnx), load_external_data=False)):
        return Compiled(lambda file: quantise_statically(job.onnx, file, job.required_samples()), {"ranges": "static"})
    # One row per batch: a range measured over several rows would make a row's output depend on the other rows.
    return Compiled(lambda file: quantise_dynamically(job.onnx, file), {"ranges": "dynamic"}, (1, 1, 1))


def fused_graph(job: Job) -> Compiled:
    """Fuses a model's operators for GPUs, then lowers it to 16 bits; casts would hide the patterns to fuse.

    Raises:
        DanqingError: a precision that ONNX Runtime does not compute this model in, or a graph of more than 2 GiB.
    """
    precision = job.precision
    if precision not in ("fp32", *HALVES):
        raise DanqingError(f"--precision {precision}: on a GPU, ONNX Runtime computes in fp32, fp16 or bf16")
    model = onnx.load(str(job.onnx))
    if precision == "bf16" and is_convolutional(model):
        raise DanqingError(
            f"--precision bf16: {job.card.name} is convolutional; ONNX Runtime has no bf16 convolution, use fp16"
        )
    fusion = fuse(model)
    if precision in HALVES:
        model = halved(model, precision, FUSED_EXACT_OPS[precision])
    if sum(len(weight.raw_data) for weight in model.graph.initializer) >= MAX_ONNX_BYTES:
        raise DanqingError(
            f"--precision {precision}: {job.card.name} would have more than 2 GiB, which no ONNX file can; use fp16"
        )

    def write(path: Path) -> None:
        with commit(path) as file:
            file.write(model.SerializeToString())

    return Compiled(write, fusion.to_dict())
