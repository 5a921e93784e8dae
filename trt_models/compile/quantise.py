"""Eight-bit networks, by ONNX Runtime's own quantiser."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx.version_converter import convert_version

DYNAMIC_OPS = ("MatMul", "Gemm")
PRODUCTS = ("Conv", "MatMul", "Gemm")
STATIC_OPS = (*PRODUCTS, "Add", "Clip", "Relu", "MaxPool", "GlobalAveragePool")
FIRST_WITH_FP8 = 19
"""The version of ONNX's operators."""


def is_convolutional(model: onnx.ModelProto) -> bool:
    """Mostly convolutions: such networks gain from fixed ranges, transformers from ranges taken anew each time."""
    kinds = [node.op_type for node in model.graph.node]
    return kinds.count("Conv") > kinds.count("MatMul") + kinds.count("Gemm")


def quantised_dynamically(source: Path, out: Path) -> None:
    """int8 weights, a scale a column; activations are quantised as they come, each tensor by its own range."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(source))
    quantize_dynamic(
        model, str(out), op_types_to_quantize=list(DYNAMIC_OPS), per_channel=True, weight_type=QuantType.QInt8,
        use_external_data_format=_is_large(source), extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip


def quantised_statically(
    source: Path, out: Path, batches: Iterable[dict[str, np.ndarray]], kind: str = "uint8"
) -> None:
    """Weights and activations in eight bits, within the ranges seen on the given inputs.

    The first layer keeps float32: it sees the pixels themselves, costs little, and its errors spoil all that follows.

    Args:
        batches: real inputs, to see ranges on.
        kind: of the activations. `uint8` for CPU cores; `int8` and `fp8` (e4m3) as TensorRT wants them: products only,
            zero stays zero, biases stay float32.
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
            model = convert_version(model, FIRST_WITH_FP8)
        for number, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}-{number}"  # layers are left out by name
        first = next((node.name for node in model.graph.node if node.op_type in PRODUCTS), "")
        quantize_static(
            model, str(out), _Inputs(batches), quant_format=QuantFormat.QDQ, per_channel=kind != "fp8",
            op_types_to_quantize=list(STATIC_OPS if on_cpu else PRODUCTS), nodes_to_exclude=[first],
            activation_type=activations, weight_type=weights, calibrate_method=ranges,
            extra_options={"ActivationSymmetric": not on_cpu, "QuantizeBias": on_cpu},
        )  # fmt: skip


class _Inputs:
    """ONNX Runtime's protocol for calibration data."""

    def __init__(self, batches: Iterable[dict[str, np.ndarray]]) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def _is_large(source: Path) -> bool:
    return sum(path.stat().st_size for path in source.parent.glob(f"{source.name}*")) > 1 << 30
