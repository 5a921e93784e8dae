"""EVA-02 (Fang et al., arXiv 2303.11331) in timm's implementation, with a classifier for unsafe pictures on top.

A vision transformer with SwiGLU layers that contain a normalisation, and with learnt positions as well as a rotary
embedding of the queries and keys.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.chinese_clip import DEVIATION, MEAN
from danqing.trt_models.export.graph import ExportedNetwork, Graph
from danqing.trt_models.export.transformer import Transformer

ARCHITECTURES = {"eva02_base_patch14_448": (768, 12), "eva02_large_patch14_448": (1024, 24)}
"""timm's name → width, layers."""
IMAGE_SIZE, PATCH_SIZE = 448, 14  # pixels
HEAD_WIDTH = 64
EPSILON = 1e-6
TRAINED_GRID = 16
"""Patches per side that the rotary embedding was trained with; the positions of a larger grid are scaled to it."""
LEVELS = ("neutral", "low", "medium", "high")
"""Classes of Freepik/nsfw_image_detector in the order of its logits, for a config.json that does not name them."""


def classifier(weights: Checkpoint) -> ExportedNetwork:
    """Writes the classifier: pixels uint8 (N, S, S, 3) RGB → probability float32 (N,) of the class `high`.

    Raises:
        DanqingError: another architecture, options that change the architecture, or no class `high`.
    """
    if "model_type" in weights.config:  # timm writes none, transformers' wrapper does
        weights.expect("timm_wrapper")
    name, options = weights.setting(weights.config, "architecture"), weights.config.get("model_args") or {}
    if name not in ARCHITECTURES or options.keys() - {"embed_dim", "depth", "num_heads", "img_size"}:
        raise DanqingError(
            f"{weights.folder / 'config.json'}: architecture is {name!r} with {options}, "
            f"the card is for {' or '.join(ARCHITECTURES)} as they are"
        )
    width, layers = ARCHITECTURES[name]
    width, layers = options.get("embed_dim", width), options.get("depth", layers)
    size = options.get("img_size", IMAGE_SIZE)
    weights.prefix = "timm_model." if "timm_model.cls_token" in weights else ""

    graph = Graph()
    writer = Transformer(graph, weights, width, width // HEAD_WIDTH, EPSILON, "gelu")
    grid, inner = size // PATCH_SIZE, int(width * (4 * 2 / 3))
    x = writer.patches(writer.pixels(MEAN, DEVIATION), "patch_embed.proj", PATCH_SIZE, bias=True)
    positions = weights("pos_embed", 1, 1 + grid**2, width)[0]
    x = writer.with_class_token(x, weights("cls_token", 1, 1, width)[0, 0], positions)
    angles = rotary_tables(grid)
    cos, sin = graph.weight(angles[0], "rope.cos"), graph.weight(angles[1], "rope.sin")
    for layer in range(layers):
        at = f"blocks.{layer}"
        with graph.at(at):
            x = writer.add(x, _attention(writer, writer.norm(x, f"{at}.norm1"), f"{at}.attn", cos, sin))
            x = writer.add(x, _swiglu(writer, writer.norm(x, f"{at}.norm2"), f"{at}.mlp", inner))
    patches = graph.add("Slice", x, np.array([1]), np.array([1 + grid**2]), np.array([1]))
    x = writer.norm(graph.add("ReduceMean", patches, axes=[1], keepdims=0), "fc_norm")
    names = labels(weights)
    shares = graph.add("Softmax", writer.linear(x, "head", len(names)), axis=1)
    graph.add("Gather", shares, np.int64(names.index("high")), axis=1, output="probability")
    return ExportedNetwork(
        graph, "classifier", {"pixels": (TensorProto.UINT8, ["N", size, size, 3])}, {"probability": ["N"]}
    )


def labels(weights: Checkpoint) -> list[str]:
    """Returns the classes in the order of the logits, in lower case.

    Raises:
        DanqingError: there is no class `high`.
    """
    by_number = weights.config.get("id2label") or {}
    named = weights.config.get("label_names") or [by_number[key] for key in sorted(by_number, key=int)]
    names = [str(name).lower() for name in named]
    if not names or names == [f"label_{number}" for number in range(len(LEVELS))]:
        names = list(LEVELS)
    if "high" not in names:
        raise DanqingError(f"{weights.folder / 'config.json'}: label_names are {names}; the card needs a class 'high'")
    return names


def rotary_tables(grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes the rotary embedding (Su et al., arXiv 2104.09864).

    The angles of a patch are 16 frequencies 10000^(-i / 16) times its row, then the same times its column. Those of the
    class token are 0.

    Args:
        grid: patches per side.

    Returns:
        cos and sin of the angles, float32 (1 + grid², HEAD_WIDTH); the second half of a row repeats the first.
    """
    frequencies = 10_000.0 ** -(np.arange(HEAD_WIDTH // 4) / (HEAD_WIDTH // 4))
    places = np.arange(grid) * TRAINED_GRID / grid
    rows, columns = np.repeat(places, grid), np.tile(places, grid)
    angles = np.concatenate([np.outer(rows, frequencies), np.outer(columns, frequencies)], axis=1)
    angles = np.concatenate([np.zeros((1, HEAD_WIDTH // 2)), angles])
    both = np.concatenate([angles, angles], axis=1)
    return np.cos(both).astype(np.float32), np.sin(both).astype(np.float32)


def _attention(writer: Transformer, x: str, path: str, cos: str, sin: str) -> str:
    """Writes attention with a rotary embedding.

    timm rotates pairs of neighbours: (0, 1), (2, 3), … Here the rows of the query and key weights are sorted
    (0, 2, …, 1, 3, …), so that element i of a head's first half is rotated with element i of the second half, without a
    reshape. Products of queries and keys are sums over all elements, so their order does not matter.
    """
    weights, width = writer.weights, writer.width
    order = np.arange(width).reshape(-1, HEAD_WIDTH // 2, 2).transpose(0, 2, 1).ravel()
    scale = np.float32(1 / math.sqrt(HEAD_WIDTH))
    graph, root = writer.graph, f"{weights.prefix}{path}"
    query = graph.weight((weights(f"{path}.q_proj.weight", width, width)[order] * scale).T, f"{root}.q_proj.weight")
    shift = graph.weight(weights(f"{path}.q_proj.bias", width)[order] * scale, f"{root}.q_proj.bias")
    key = graph.weight(weights(f"{path}.k_proj.weight", width, width)[order].T, f"{root}.k_proj.weight")
    q = writer.split(graph.add("Add", graph.add("MatMul", x, query), shift), [0, 2, 1, 3])
    k = writer.split(graph.add("MatMul", x, key), [0, 2, 1, 3])  # EVA's keys have no bias
    v = writer.split(writer.linear(x, f"{path}.v_proj", width), [0, 2, 1, 3])
    k = graph.add("Transpose", _rotated(graph, k, cos, sin), perm=[0, 1, 3, 2])
    return writer.linear(writer.mixed(_rotated(graph, q, cos, sin), k, v), f"{path}.proj", width)


def _rotated(graph: Graph, x: str, cos: str, sin: str) -> str:
    """Writes the rotary embedding of the halves (a, b) of x's last axis: (a cos - b sin, b cos + a sin)."""
    half, end = np.array([HEAD_WIDTH // 2]), np.array([HEAD_WIDTH])
    a = graph.add("Slice", x, np.array([0]), half, np.array([3]))
    b = graph.add("Slice", x, half, end, np.array([3]))
    across = graph.add("Concat", graph.add("Neg", b), a, axis=3)
    return graph.add("Add", graph.add("Mul", x, cos), graph.add("Mul", across, sin))


def _swiglu(writer: Transformer, x: str, path: str, inner: int) -> str:
    """Writes silu(x G) (x W), normalised and projected (Shazeer, arXiv 2002.05202)."""
    gate = writer.linear(x, f"{path}.fc1_g", inner)
    gate = writer.graph.add("Mul", gate, writer.graph.add("Sigmoid", gate))
    x = writer.graph.add("Mul", gate, writer.linear(x, f"{path}.fc1_x", inner))
    return writer.linear(writer.norm(x, f"{path}.norm", width=inner), f"{path}.fc2", writer.width, inner)
