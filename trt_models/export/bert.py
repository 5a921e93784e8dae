"""BERT (Devlin et al., arXiv 1810.04805): encoder, classifier on its [CLS] state, masked language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.graph import ExportedNetwork, Graph
from danqing.trt_models.export.transformer import Transformer, padding_mask

SAFE_NAMES = ("safe", "normal", "neutral", "ok", "negative", "non-toxic", "clean", "label_0", "0")
"""Names of the class of harmless texts. The other classes' probabilities add up to that of an unsafe text."""


def classifier(weights: Checkpoint) -> ExportedNetwork:
    """Writes a classifier: tokens int32 (N, T) → probability float32 (N,) of an unsafe text.

    The tokens begin with [CLS] and are padded with [PAD].

    Raises:
        DanqingError: another architecture, or config.json does not name the harmless class.
    """
    weights.expect("bert")
    graph = Graph()
    writer, x = encoder(graph, weights, weights.config, "bert")
    x = graph.add("Tanh", writer.linear(writer.token(x, 0), "bert.pooler.dense", writer.width))
    classes = len(weights("classifier.bias", -1))
    shares = graph.add("Softmax", writer.linear(x, "classifier", classes), axis=1)
    safe = graph.add("Gather", shares, np.int64(_safe_class(weights, classes)), axis=1)
    graph.add("Sub", np.float32(1), safe, output="probability")
    return ExportedNetwork(graph, "classifier", {"tokens": (TensorProto.INT32, ["N", "T"])}, {"probability": ["N"]})


def masked_language_model(weights: Checkpoint) -> ExportedNetwork:
    """Writes the masked language model: tokens, targets int32 (N, T) → log_likelihood float32 (N,).

    A row of `targets` has the true token at the one place that is masked in `tokens`, and -1 at the others; the output
    is the log-probability of that token there.

    Raises:
        DanqingError: another architecture.
    """
    weights.expect("bert")
    graph = Graph()
    writer, x = encoder(graph, weights, weights.config, "bert")
    axis = np.array([1])
    masked = graph.add("Cast", graph.add("GreaterOrEqual", "targets", np.int32(0)), to=TensorProto.FLOAT)
    # One state is projected to the vocabulary, not all: x (N, T, width) → (N, width).
    x = graph.add("ReduceSum", graph.add("Mul", x, graph.add("Unsqueeze", masked, np.array([2]))), axis, keepdims=0)
    head = "cls.predictions"
    x = writer.activate(writer.linear(x, f"{head}.transform.dense", writer.width))
    x = writer.norm(x, f"{head}.transform.LayerNorm")
    words, decoder = "bert.embeddings.word_embeddings.weight", f"{head}.decoder.weight"
    bias = weights(own if (own := f"{head}.decoder.bias") in weights else f"{head}.bias", -1)
    if decoder in weights and not np.array_equal(table := weights(decoder, len(bias), writer.width), weights(words)):
        scores = graph.add("MatMul", x, graph.weight(np.ascontiguousarray(table.T), decoder))
    else:  # the weights are those of the embedding
        scores = graph.add("MatMul", x, graph.add("Transpose", words, perm=[1, 0]))
    shares = graph.add("LogSoftmax", graph.add("Add", scores, bias), axis=1)
    target = graph.add("ReduceMax", graph.add("Cast", "targets", to=TensorProto.INT64), axes=[1], keepdims=1)
    graph.add("Squeeze", graph.add("GatherElements", shares, target, axis=1), axis, output="log_likelihood")
    inputs = {name: (TensorProto.INT32, ["N", "T"]) for name in ("tokens", "targets")}
    return ExportedNetwork(graph, "masked_language_model", inputs, {"log_likelihood": ["N"]})


def _safe_class(weights: Checkpoint, classes: int) -> int:
    names = weights.config.get("id2label") or {str(number): f"LABEL_{number}" for number in range(classes)}
    found = [int(number) for number, name in names.items() if str(name).lower() in SAFE_NAMES]
    if len(found) != 1 or not 0 <= found[0] < classes:
        raise DanqingError(
            f"{weights.folder / 'config.json'}: id2label does not say which class is harmless ({names}); "
            f"name it one of {', '.join(SAFE_NAMES[:5])}"
        )
    return found[0]


def encoder(graph: Graph, weights: Checkpoint, config: Mapping[str, Any], root: str) -> tuple[Transformer, str]:
    """Writes the encoder.

    Args:
        graph: the graph to write to; its input is `tokens`, int32 (N, T).
        weights: the checkpoint.
        config: the encoder's section of config.json.
        root: prefix of the names of the encoder's weights.

    Returns:
        A writer for the rest of the network, and the name of the hidden states (N, T, width).
    """
    writer = Transformer.of(graph, weights, config, 1e-12, "gelu")
    width, inner = writer.width, weights.setting(config, "intermediate_size", 3072)
    at = f"{root}.embeddings"
    words = weights(f"{at}.word_embeddings.weight", -1, width)
    # Every token is in the first segment, so the segment's vector is added to the positions.
    positions = (
        weights(f"{at}.position_embeddings.weight", -1, width)
        + weights(f"{at}.token_type_embeddings.weight", -1, width)[0]
    )
    length = graph.add("Slice", graph.add("Shape", "tokens"), np.array([1]), np.array([2]))
    x = graph.add("Gather", graph.weight(words, f"{at}.word_embeddings.weight"), "tokens")
    x = writer.add(
        x, graph.add("Slice", graph.weight(positions, f"{at}.positions"), np.array([0]), length, np.array([0]))
    )
    x = writer.norm(x, f"{at}.LayerNorm")
    mask = padding_mask(graph, "tokens", int(weights.setting(config, "pad_token_id", 0)))
    for layer in range(weights.setting(config, "num_hidden_layers", 12)):
        at = f"{root}.encoder.layer.{layer}"
        with graph.at(at):
            query, key, value = (f"{at}.attention.self.{name}" for name in ("query", "key", "value"))
            attended = writer.attention(x, query, key, value, f"{at}.attention.output.dense", mask)
            x = writer.norm(writer.add(x, attended), f"{at}.attention.output.LayerNorm")
            y = writer.mlp(x, f"{at}.intermediate.dense", f"{at}.output.dense", inner)
            x = writer.norm(writer.add(x, y), f"{at}.output.LayerNorm")
    return writer, x
