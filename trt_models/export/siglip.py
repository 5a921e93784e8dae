"""SigLIP and SigLIP 2 of fixed resolution (Zhai et al., arXiv 2303.15343; Tschannen et al., arXiv 2502.14786)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.graph import ExportedNetwork, Graph
from danqing.trt_models.export.transformer import Transformer

MEAN = DEVIATION = (0.5, 0.5, 0.5)  # of RGB in 0 … 1
EPSILON = 1e-6
ACTIVATION = "gelu_pytorch_tanh"


def image_tower(weights: Checkpoint) -> ExportedNetwork:
    """Writes the image tower: pixels uint8 (N, S, S, 3) RGB → embedding float32 (N, D), unit rows."""
    weights.expect("siglip")
    graph, config = Graph(), weights.setting(weights.config, "vision_config")
    writer = Transformer.of(graph, weights, config, EPSILON, ACTIVATION)
    root, patch = "vision_model", weights.setting(config, "patch_size", 16)
    size = weights.setting(config, "image_size", 224)
    x = writer.patches(writer.pixels(MEAN, DEVIATION), f"{root}.embeddings.patch_embedding", patch, bias=True)
    positions = weights(f"{root}.embeddings.position_embedding.weight", (size // patch) ** 2, writer.width)
    x = writer.layers(graph.add("Add", x, positions[None]), config, root)
    x = writer.norm(x, f"{root}.post_layernorm")
    graph.unit(_attention_pool(writer, x, config, f"{root}.head"), output="embedding")
    return ExportedNetwork(
        graph, "image", {"pixels": (TensorProto.UINT8, ["N", size, size, 3])}, {"embedding": ["N", writer.width]}
    )


def text_tower(weights: Checkpoint) -> ExportedNetwork:
    """Writes the text tower: tokens int32 (N, T) → embedding float32 (N, D), unit rows.

    Texts are padded to T, which is fixed: the model was trained without a mask.
    """
    weights.expect("siglip")
    graph, config = Graph(), weights.setting(weights.config, "text_config")
    writer, root = Transformer.of(graph, weights, config, EPSILON, ACTIVATION), "text_model"
    length = weights.setting(config, "max_position_embeddings", 64)
    words = weights(f"{root}.embeddings.token_embedding.weight", -1, writer.width)
    positions = weights(f"{root}.embeddings.position_embedding.weight", length, writer.width)
    x = graph.add("Gather", graph.weight(words, f"{root}.embeddings.token_embedding.weight"), "tokens")
    x = writer.layers(graph.add("Add", x, positions[None]), config, root)
    x = writer.norm(writer.token(x, length - 1), f"{root}.final_layer_norm")
    dimension = weights.setting(config, "projection_size", writer.width)
    graph.unit(writer.linear(x, f"{root}.head", dimension), output="embedding")
    return ExportedNetwork(
        graph, "text", {"tokens": (TensorProto.INT32, ["N", length])}, {"embedding": ["N", dimension]}
    )


def _attention_pool(writer: Transformer, x: str, config: Mapping[str, Any], root: str) -> str:
    """Writes the pooling, x (N, T, width) → (N, width): a learnt query attends to all patches, then a residual MLP."""
    graph, width, size = writer.graph, writer.width, writer.width // writer.heads
    joined = writer.weights(f"{root}.attention.in_proj_weight", 3 * width, width)
    shift = writer.weights(f"{root}.attention.in_proj_bias", 3 * width)
    probe = writer.weights(f"{root}.probe", 1, 1, width)[0]
    # The query is the same for every picture, so its projection is a constant.
    query = (probe @ joined[:width].T + shift[:width]) / np.float32(math.sqrt(size))
    query = query.reshape(1, writer.heads, 1, size).astype(np.float32)
    keys, values = (
        graph.add("Add", graph.add("MatMul", x, np.ascontiguousarray(joined[part].T)), shift[part])
        for part in (slice(width, 2 * width), slice(2 * width, None))
    )
    mixed = writer.mixed(query, writer.split(keys, [0, 2, 3, 1]), writer.split(values, [0, 2, 1, 3]))
    x = writer.token(writer.linear(mixed, f"{root}.attention.out_proj", width), 0)
    inner = writer.weights.setting(config, "intermediate_size", 3072)
    return writer.add(x, writer.mlp(writer.norm(x, f"{root}.layernorm"), f"{root}.mlp.fc1", f"{root}.mlp.fc2", inner))
