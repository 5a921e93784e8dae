"""Eight-bit networks, by ONNX Runtime's own quantiser."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx

DYNAMIC_OPS = ("MatMul", "Gemm")
PRODUCTS = ("Conv", "MatMul", "Gemm")
STATIC_OPS = (*PRODUCTS, "Add", "Clip", "Relu", "MaxPool", "GlobalAveragePool")


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
    source: Path, out: Path, batches: Iterable[dict[str, np.ndarray]], symmetric: bool = False
) -> None:
    """int8 weights, a scale a channel; activations within the ranges seen on the given inputs.

    The first layer keeps float32: it sees the pixels themselves, costs little, and its errors spoil all that follows.

    Args:
        batches: real inputs, to see ranges on.
        symmetric: as TensorRT wants it: only products in int8; zero stays zero, which costs a bit where nothing is
            negative; biases stay float32.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    kind = QuantType.QInt8 if symmetric else QuantType.QUInt8
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
        for number, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}-{number}"  # layers are left out by name
        first = next((node.name for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")), "")
        quantize_static(
            model, str(out), _Inputs(batches), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS if symmetric else STATIC_OPS), nodes_to_exclude=[first],
            per_channel=True, activation_type=kind, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
        )  # fmt: skip


class _Inputs:
    """ONNX Runtime's protocol for calibration data."""

    def __init__(self, batches: Iterable[dict[str, np.ndarray]]) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def _is_large(source: Path) -> bool:
    return sum(path.stat().st_size for path in source.parent.glob(f"{source.name}*")) > 1 << 30
