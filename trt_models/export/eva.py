"""EVA-02 (Fang et al., arXiv 2303.11331), as timm has it, with a classifier for unsafe pictures on top.

A vision transformer whose two-layer networks are SwiGLU with a normalisation inside, and whose queries and keys turn
with the place of their patch (rotary embedding) besides the learnt positions.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.chinese_clip import DEVIATION, MEAN
from danqing.trt_models.export.graph import Graph, Network
from danqing.trt_models.export.transformer import Transformer

ARCHITECTURES = {"eva02_base_patch14_448": (768, 12), "eva02_large_patch14_448": (1024, 24)}
"""timm's name → width, layers."""
SIZE, PATCH, HEAD, EPSILON = 448, 14, 64, 1e-6
TRAINED = 16
"""Patches a side that the rotary embedding was trained with; a larger picture's are squeezed into as many."""
LEVELS = ("neutral", "low", "medium", "high")
"""Classes of Freepik/nsfw_image_detector, in its order, for a config.json that does not name them."""


def classifier(weights: Checkpoint) -> Network:
    """pixels uint8 (N, S, S, 3) RGB → probability float32 (N,) of the class `high`.

    Raises:
        DanqingError: another architecture of timm's, options that change it, or classes without `high`.
    """
    if "model_type" in weights.config:  # timm itself writes none
        weights.expect("timm_wrapper")
    name, options = weights.setting(weights.config, "architecture"), weights.config.get("model_args") or {}
    if name not in ARCHITECTURES or options.keys() - {"embed_dim", "depth", "num_heads", "img_size"}:
        raise DanqingError(
            f"{weights.folder / 'config.json'}: architecture is {name!r} with {options}, "
            f"the card is for {' or '.join(ARCHITECTURES)} as they are"
        )
    width, layers = ARCHITECTURES[name]
    width, layers = options.get("embed_dim", width), options.get("depth", layers)
    size = options.get("img_size", SIZE)
    weights.prefix = "timm_model." if "timm_model.cls_token" in weights else ""  # transformers' wrapper, or timm itself

    graph = Graph()
    write = Transformer(graph, weights, width, width // HEAD, EPSILON, "gelu")
    grid, inner = size // PATCH, int(width * (4 * 2 / 3))
    x = write.patches(write.pixels(MEAN, DEVIATION), "patch_embed.proj", PATCH, bias=True)
    positions = weights("pos_embed", 1, 1 + grid**2, width)[0]
    x = write.with_class_token(x, weights("cls_token", 1, 1, width)[0, 0], positions)
    turns = rotation(grid)
    cos, sin = graph.weight(turns[0], "rope.cos"), graph.weight(turns[1], "rope.sin")
    for layer in range(layers):
        at = f"blocks.{layer}"
        with graph.at(at):
            x = write.add(x, _attention(write, write.norm(x, f"{at}.norm1"), f"{at}.attn", cos, sin))
            x = write.add(x, _swiglu(write, write.norm(x, f"{at}.norm2"), f"{at}.mlp", inner))
    patches = graph.add("Slice", x, np.array([1]), np.array([1 + grid**2]), np.array([1]))
    x = write.norm(graph.add("ReduceMean", patches, axes=[1], keepdims=0), "fc_norm")
    names = labels(weights)
    shares = graph.add("Softmax", write.linear(x, "head", len(names)), axis=1)
    graph.add("Gather", shares, np.int64(names.index("high")), axis=1, output="probability")
    return Network(graph, "classifier", {"pixels": (TensorProto.UINT8, ["N", size, size, 3])}, {"probability": ["N"]})


def labels(weights: Checkpoint) -> list[str]:
    """The classes in the order of the logits, in lower case."""
    by_number = weights.config.get("id2label") or {}
    named = weights.config.get("label_names") or [by_number[key] for key in sorted(by_number, key=int)]
    names = [str(name).lower() for name in named]
    if not names or names == [f"label_{number}" for number in range(len(LEVELS))]:
        names = list(LEVELS)
    if "high" not in names:
        raise DanqingError(f"{weights.folder / 'config.json'}: label_names are {names}; the card needs a class 'high'")
    return names


def rotation(grid: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, float32 (1 + grid², HEAD), of how far the numbers of a query or key turn (Su et al., arXiv
    2104.09864): sixteen frequencies 10000^(-i / 16) times the patch's row, then times its column. The class token
    stays as it is.
    """
    frequencies = 10_000.0 ** -(np.arange(HEAD // 4) / (HEAD // 4))
    places = np.arange(grid) * TRAINED / grid
    rows, columns = np.repeat(places, grid), np.tile(places, grid)
    turns = np.concatenate([np.outer(rows, frequencies), np.outer(columns, frequencies)], axis=1)
    turns = np.concatenate([np.zeros((1, HEAD // 2)), turns])
    both = np.concatenate([turns, turns], axis=1)
    return np.cos(both).astype(np.float32), np.sin(both).astype(np.float32)


def _attention(write: Transformer, x: str, path: str, cos: str, sin: str) -> str:
    """timm turns neighbouring numbers (0, 1), (2, 3), … against each other. Here the rows of the queries' and keys'
    weights are sorted (0, 2, …, 1, 3, …), so that the two halves of a head turn against each other, without reshaping;
    the products of queries and keys are sums over all of them and do not change.
    """
    weights, width = write.weights, write.width
    order = np.arange(width).reshape(-1, HEAD // 2, 2).transpose(0, 2, 1).ravel()
    scale = np.float32(1 / math.sqrt(HEAD))
    graph, root = write.graph, f"{weights.prefix}{path}"
    query = graph.weight((weights(f"{path}.q_proj.weight", width, width)[order] * scale).T, f"{root}.q_proj.weight")
    shift = graph.weight(weights(f"{path}.q_proj.bias", width)[order] * scale, f"{root}.q_proj.bias")
    key = graph.weight(weights(f"{path}.k_proj.weight", width, width)[order].T, f"{root}.k_proj.weight")
    q = write.split(graph.add("Add", graph.add("MatMul", x, query), shift), [0, 2, 1, 3])
    k = write.split(graph.add("MatMul", x, key), [0, 2, 1, 3])  # EVA's keys have no bias
    v = write.split(write.linear(x, f"{path}.v_proj", width), [0, 2, 1, 3])
    k = graph.add("Transpose", _turned(graph, k, cos, sin), perm=[0, 1, 3, 2])
    return write.linear(write.mixed(_turned(graph, q, cos, sin), k, v), f"{path}.proj", width)


def _turned(graph: Graph, x: str, cos: str, sin: str) -> str:
    """(a, b), the halves of x's last axis → (a cos - b sin, b cos + a sin)."""
    half, end = np.array([HEAD // 2]), np.array([HEAD])
    a = graph.add("Slice", x, np.array([0]), half, np.array([3]))
    b = graph.add("Slice", x, half, end, np.array([3]))
    across = graph.add("Concat", graph.add("Neg", b), a, axis=3)
    return graph.add("Add", graph.add("Mul", x, cos), graph.add("Mul", across, sin))


def _swiglu(write: Transformer, x: str, path: str, inner: int) -> str:
    """silu(x G) (x W), normalised and projected (Shazeer, arXiv 2002.05202)."""
    gate = write.linear(x, f"{path}.fc1_g", inner)
    gate = write.graph.add("Mul", gate, write.graph.add("Sigmoid", gate))
    x = write.graph.add("Mul", gate, write.linear(x, f"{path}.fc1_x", inner))
    return write.linear(write.norm(x, f"{path}.norm", width=inner), f"{path}.fc2", write.width, inner)
