"""Chinese-CLIP (Yang et al., arXiv 2211.01335): CLIP's vision transformer and a RoBERTa-wwm text encoder."""

from __future__ import annotations

from onnx import TensorProto

from danqing.trt_models.export.bert import encoder
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.graph import ExportedNetwork, Graph
from danqing.trt_models.export.transformer import Transformer

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in 0 … 1, as is the deviation: CLIP's preprocessing
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def image_tower(weights: Checkpoint) -> ExportedNetwork:
    """Writes the image tower, also of CLIP: pixels uint8 (N, S, S, 3) RGB → embedding float32 (N, D), unit rows."""
    weights.expect("chinese_clip", "clip")
    graph = Graph()
    vision = weights.setting(weights.config, "vision_config")
    graph.unit(image_features(graph, weights, embedding_dimension(weights)), output="embedding")
    size = weights.setting(vision, "image_size", 224)
    dimension = embedding_dimension(weights)
    return ExportedNetwork(
        graph, "image", {"pixels": (TensorProto.UINT8, ["N", size, size, 3])}, {"embedding": ["N", dimension]}
    )


def embedding_dimension(weights: Checkpoint) -> int:
    """Returns the dimension D of the embeddings."""
    return int(weights.setting(weights.config, "projection_dim", 512))


def image_features(graph: Graph, weights: Checkpoint, dimension: int) -> str:
    """Writes CLIP's vision transformer; returns the projected class token (N, dimension), not of unit length."""
    config = weights.setting(weights.config, "vision_config")
    patch = weights.setting(config, "patch_size", 32)
    writer = Transformer.of(graph, weights, config, 1e-5, "quick_gelu")
    root = "vision_model"
    patches = (weights.setting(config, "image_size", 224) // patch) ** 2
    x = writer.patches(writer.pixels(MEAN, DEVIATION), f"{root}.embeddings.patch_embedding", patch, bias=False)
    positions = weights(f"{root}.embeddings.position_embedding.weight", patches + 1, writer.width)
    x = writer.with_class_token(x, weights(f"{root}.embeddings.class_embedding", writer.width), positions)
    x = writer.norm(x, f"{root}.pre_layrnorm")  # spelt so in every checkpoint
    x = writer.layers(x, config, root)
    x = writer.norm(writer.token(x, 0), f"{root}.post_layernorm")
    return writer.linear(x, "visual_projection", dimension, bias=False)


def text_tower(weights: Checkpoint) -> ExportedNetwork:
    """Writes the text tower: tokens int32 (N, T) → embedding float32 (N, D), unit rows.

    The tokens begin with [CLS] and are padded with [PAD].
    """
    weights.expect("chinese_clip")
    graph = Graph()
    config = weights.setting(weights.config, "text_config")
    writer, x = encoder(graph, weights, config, "text_model")
    x = writer.linear(writer.token(x, 0), "text_projection", embedding_dimension(weights), bias=False)
    graph.unit(x, output="embedding")
    return ExportedNetwork(
        graph, "text", {"tokens": (TensorProto.INT32, ["N", "T"])}, {"embedding": ["N", embedding_dimension(weights)]}
    )
