"""Chinese-CLIP (Yang et al., arXiv 2211.01335): CLIP's vision transformer and a RoBERTa-wwm text encoder."""

from __future__ import annotations

from onnx import TensorProto

from danqing.trt_models.export.bert import encoder
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.graph import Graph, Network
from danqing.trt_models.export.transformer import Transformer

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def image_tower(weights: Checkpoint) -> Network:
    """pixels uint8 (N, S, S, 3) RGB → embedding float32 (N, D), unit rows."""
    weights.expect("chinese_clip", "clip")
    graph = Graph()
    vision = weights.setting(weights.config, "vision_config")
    graph.unit(pooled(graph, weights, projected(weights)), output="embedding")
    size = weights.setting(vision, "image_size", 224)
    dimension = projected(weights)
    return Network(
        graph, "image", {"pixels": (TensorProto.UINT8, ["N", size, size, 3])}, {"embedding": ["N", dimension]}
    )


def projected(weights: Checkpoint) -> int:
    return int(weights.setting(weights.config, "projection_dim", 512))


def pooled(graph: Graph, weights: Checkpoint, dimension: int) -> str:
    """CLIP's vision transformer: the class token's state, projected, (N, dimension); not of unit length yet."""
    config = weights.setting(weights.config, "vision_config")
    patch = weights.setting(config, "patch_size", 32)
    write = Transformer.of(graph, weights, config, 1e-5, "quick_gelu")
    root = "vision_model"
    patches = (weights.setting(config, "image_size", 224) // patch) ** 2
    x = write.patches(write.pixels(MEAN, DEVIATION), f"{root}.embeddings.patch_embedding", patch, bias=False)
    positions = weights(f"{root}.embeddings.position_embedding.weight", patches + 1, write.width)
    x = write.with_class_token(x, weights(f"{root}.embeddings.class_embedding", write.width), positions)
    x = write.norm(x, f"{root}.pre_layrnorm")  # spelt so in every checkpoint
    x = write.layers(x, config, root)
    x = write.norm(write.token(x, 0), f"{root}.post_layernorm")
    return write.linear(x, "visual_projection", dimension, bias=False)


def text_tower(weights: Checkpoint) -> Network:
    """tokens int32 (N, T), [CLS] first and padded with the [PAD] id → embedding float32 (N, D), unit rows."""
    weights.expect("chinese_clip")
    graph = Graph()
    config = weights.setting(weights.config, "text_config")
    write, x = encoder(graph, weights, config, "text_model")
    x = write.linear(write.token(x, 0), "text_projection", projected(weights), bias=False)
    graph.unit(x, output="embedding")
    return Network(graph, "text", {"tokens": (TensorProto.INT32, ["N", "T"])}, {"embedding": ["N", projected(weights)]})
