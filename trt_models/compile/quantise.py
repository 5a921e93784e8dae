"""Quantises networks to eight bits with ONNX Runtime's quantiser."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx.version_converter import convert_version

DYNAMIC_OPS = ("MatMul", "Gemm")
PRODUCT_OPS = ("Conv", "MatMul", "Gemm")
STATIC_OPS = (*PRODUCT_OPS, "Add", "Clip", "Relu", "MaxPool", "GlobalAveragePool")
FP8_OPSET = 19
"""First version of ONNX's operators with fp8 types."""
EXTERNAL_DATA_BYTES = 1 << 30
"""Models above this size are written with their weights in a separate file; one ONNX file holds at most 2 GiB."""


def is_convolutional(model: onnx.ModelProto) -> bool:
    """Whether a network has more convolutions than matrix products.

    Such networks lose least with fixed activation ranges, transformers with ranges computed for each input.
    """
    kinds = [node.op_type for node in model.graph.node]
    return kinds.count("Conv") > kinds.count("MatMul") + kinds.count("Gemm")


def quantise_dynamically(source: Path, out: Path) -> None:
    """Quantises matrix products to int8: weights with a scale per column, activations by the range of each tensor.

    Args:
        source: the model in float32.
        out: the ONNX file to write.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(source))
    size = sum(path.stat().st_size for path in source.parent.glob(f"{source.name}*"))  # separate weights included
    with _without_advice():
        quantize_dynamic(
            model, str(out), op_types_to_quantize=list(DYNAMIC_OPS), per_channel=True, weight_type=QuantType.QInt8,
            use_external_data_format=size > EXTERNAL_DATA_BYTES, extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip


@contextmanager
def _without_advice() -> Iterator[None]:
    """Drops what ONNX Runtime writes to the root logger: to run a pre-processing that exported graphs do not need."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # without one, the root logger would get one for stderr and keep it
    root.addFilter(_reject)
    try:
        yield
    finally:
        root.removeFilter(_reject)
        root.removeHandler(handler)


def _reject(record: logging.LogRecord) -> bool:
    return False


def quantise_statically(source: Path, out: Path, batches: Iterable[dict[str, np.ndarray]], kind: str = "uint8") -> None:
    """Quantises weights and activations to eight bits, with fixed activation ranges measured on real inputs.

    The first layer stays in float32: it reads the pixels, costs little, and its errors reach all later layers.

    Args:
        source: the model in float32.
        out: the ONNX file to write.
        batches: real inputs, name → array each.
        kind: type of the activations. `uint8` is for CPUs. `int8` and `fp8` (e4m3) are for TensorRT: only products are
            quantised, ranges are symmetric around 0, biases stay in float32.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    activations, weights, ranges = {
        "uint8": (QuantType.QUInt8, QuantType.QInt8, CalibrationMethod.MinMax),
        "int8": (QuantType.QInt8, QuantType.QInt8, CalibrationMethod.MinMax),
        "fp8": (QuantType.QFLOAT8E4M3FN, QuantType.QFLOAT8E4M3FN, CalibrationMethod.Distribution),
    }[kind]
    on_cpu = kind == "uint8"
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
        if kind == "fp8":
            model = convert_version(model, FP8_OPSET)
        for number, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}-{number}"  # `nodes_to_exclude` needs names
        first = next((node.name for node in model.graph.node if node.op_type in PRODUCT_OPS), "")
        quantize_static(
            model, str(out), _Inputs(batches), quant_format=QuantFormat.QDQ, per_channel=kind != "fp8",
            op_types_to_quantize=list(STATIC_OPS if on_cpu else PRODUCT_OPS), nodes_to_exclude=[first],
            activation_type=activations, weight_type=weights, calibrate_method=ranges,
            extra_options={"ActivationSymmetric": not on_cpu, "QuantizeBias": on_cpu},
        )  # fmt: skip


class _Inputs:
    """The batches, by ONNX Runtime's protocol for calibration data."""

    def __init__(self, batches: Iterable[dict[str, np.ndarray]]) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)
