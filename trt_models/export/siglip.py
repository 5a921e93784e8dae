"""SigLIP and SigLIP 2 of fixed resolution (Zhai et al., arXiv 2303.15343; Tschannen et al., arXiv 2502.14786)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.graph import Graph, Network
from danqing.trt_models.export.transformer import Transformer

HALF = (0.5, 0.5, 0.5)
EPSILON, ACTIVATION = 1e-6, "gelu_pytorch_tanh"


def image_tower(weights: Checkpoint) -> Network:
    """pixels uint8 (N, S, S, 3) RGB → embedding float32 (N, D), unit rows."""
    weights.expect("siglip")
    graph, config = Graph(), weights.setting(weights.config, "vision_config")
    write = Transformer.of(graph, weights, config, EPSILON, ACTIVATION)
    root, patch = "vision_model", weights.setting(config, "patch_size", 16)
    size = weights.setting(config, "image_size", 224)
    x = write.patches(write.pixels(HALF, HALF), f"{root}.embeddings.patch_embedding", patch, bias=True)
    positions = weights(f"{root}.embeddings.position_embedding.weight", (size // patch) ** 2, write.width)
    x = write.layers(graph.add("Add", x, positions[None]), config, root)
    x = write.norm(x, f"{root}.post_layernorm")
    graph.unit(_attention_pool(write, x, config, f"{root}.head"), output="embedding")
    return Network(
        graph, "image", {"pixels": (TensorProto.UINT8, ["N", size, size, 3])}, {"embedding": ["N", write.width]}
    )


def text_tower(weights: Checkpoint) -> Network:
    """tokens int32 (N, T), padded to the full T (the model was trained without a mask) → embedding float32 (N, D)."""
    weights.expect("siglip")
    graph, config = Graph(), weights.setting(weights.config, "text_config")
    write, root = Transformer.of(graph, weights, config, EPSILON, ACTIVATION), "text_model"
    length = weights.setting(config, "max_position_embeddings", 64)
    words = weights(f"{root}.embeddings.token_embedding.weight", -1, write.width)
    positions = weights(f"{root}.embeddings.position_embedding.weight", length, write.width)
    x = graph.add("Gather", graph.weight(words, f"{root}.embeddings.token_embedding.weight"), "tokens")
    x = write.layers(graph.add("Add", x, positions[None]), config, root)
    x = write.norm(write.token(x, length - 1), f"{root}.final_layer_norm")
    dimension = weights.setting(config, "projection_size", write.width)
    graph.unit(write.linear(x, f"{root}.head", dimension), output="embedding")
    return Network(graph, "text", {"tokens": (TensorProto.INT32, ["N", length])}, {"embedding": ["N", dimension]})


def _attention_pool(write: Transformer, x: str, config: Mapping[str, Any], root: str) -> str:
    """x (N, T, width) → (N, width): one learnt query attends to all patches, then a residual two-layer network."""
    graph, width, size = write.graph, write.width, write.width // write.heads
    joined = write.weights(f"{root}.attention.in_proj_weight", 3 * width, width)
    shift = write.weights(f"{root}.attention.in_proj_bias", 3 * width)
    probe = write.weights(f"{root}.probe", 1, 1, width)[0]
    # The query is the same for every picture, so its projection is a constant.
    query = (probe @ joined[:width].T + shift[:width]) / np.float32(math.sqrt(size))
    query = query.reshape(1, write.heads, 1, size).astype(np.float32)
    keys, values = (
        graph.add("Add", graph.add("MatMul", x, np.ascontiguousarray(joined[part].T)), shift[part])
        for part in (slice(width, 2 * width), slice(2 * width, None))
    )
    mixed = write.mixed(query, write.split(keys, [0, 2, 3, 1]), write.split(values, [0, 2, 1, 3]))
    x = write.token(write.linear(mixed, f"{root}.attention.out_proj", width), 0)
    inner = write.weights.setting(config, "intermediate_size", 3072)
    return write.add(x, write.mlp(write.norm(x, f"{root}.layernorm"), f"{root}.mlp.fc1", f"{root}.mlp.fc2", inner))
