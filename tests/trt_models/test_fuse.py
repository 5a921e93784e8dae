"""Graphs with ONNX Runtime's fused operators: equal outputs, and 16 bits in the fused operators."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from danqing.profiling.bench.published import save
from danqing.trt_models.card import Card, load_card
from danqing.trt_models.compile.onnx_fusion import DOMAIN, Fusion, fuse
from danqing.trt_models.export import exporter, open_nsfw
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.precision import FUSED_EXACT_OPS, HALVES, halved
from tests.trt_models.small_models import own_card, run
from tests.trt_models.test_models_command import FAMILIES, inputs

LAYERS = 3
EXPECTED = {
    "chinese-clip-vit-l-14-image": {"MultiHeadAttention": LAYERS, "SkipLayerNormalization": 5, "QuickGelu": LAYERS},
    "chinese-clip-vit-l-14-text": {"MultiHeadAttention": LAYERS, "SkipLayerNormalization": 6, "BiasGelu": LAYERS},
    "siglip2-b-16-256-image": {"MultiHeadAttention": LAYERS, "SkipLayerNormalization": 6, "FastGelu": LAYERS + 1},
    "siglip2-b-16-256-text": {"MultiHeadAttention": LAYERS, "SkipLayerNormalization": 5, "FastGelu": LAYERS},
    "text-safety-20m": {"MultiHeadAttention": LAYERS, "SkipLayerNormalization": 6, "BiasGelu": LAYERS},
    "freepik-nsfw": {"MultiHeadAttention": 2, "RotaryEmbedding": 4, "SkipLayerNormalization": 3, "QuickGelu": 2},
}
"""Card → number of fused operators in the small network: all attentions and activations, and all normalisations after a
residual sum."""


@pytest.fixture(scope="module", params=FAMILIES)
def towers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Card, Path]]:
    family, folder = FAMILIES[request.param](), tmp_path_factory.mktemp("checkpoint")
    save(family.model, folder)
    return [(load_card(own_card(name, folder, **changes)), folder) for name, changes in family.cards.items()]


def fused(card: Card, checkpoint: Path) -> tuple[np.ndarray, onnx.ModelProto, Fusion]:
    """Fuses an exported graph; returns the output of the plain graph, the fused graph and its counts."""
    network = exporter(str(card.export))
    assert network is not None
    model = network(Checkpoint(checkpoint)).model()
    plain = run(model, **inputs(card))
    return plain, model, fuse(model)


def test_fused_graphs_agree_with_the_plain_ones(towers: list[tuple[Card, Path]]) -> None:
    for card, checkpoint in towers:
        plain, model, fusion = fused(card, checkpoint)
        onnx.checker.check_model(model)
        assert fusion.fused == EXPECTED[card.name]
        # Only SigLIP's pooling, attention with one constant query, is not fused.
        assert fusion.left["Softmax"] == (1 if card.name == "siglip2-b-16-256-image" else 0)
        assert fusion.left["Erf"] == 0 and fusion.nodes == len(model.graph.node) < fusion.nodes_before
        found = run(model, **inputs(card))
        assert found.dtype == np.float32 and np.abs(found - plain).max() <= 1e-6
        kinds = Counter(node.op_type for node in model.graph.node)
        assert kinds["Shape"] == ("tokens" in inputs(card) and "siglip" not in card.name)
        assert kinds["Expand"] == 0  # only BERT computes a shape, of the captions, on the host


def test_names_of_nodes_are_optional(towers: list[tuple[Card, Path]]) -> None:
    for card, checkpoint in towers:
        network = exporter(str(card.export))
        assert network is not None
        model = network(Checkpoint(checkpoint)).model()
        for node in model.graph.node:
            node.name = ""
        plain = run(model, **inputs(card))
        assert fuse(model).fused == EXPECTED[card.name]
        assert np.abs(run(model, **inputs(card)) - plain).max() <= 1e-6


def test_fusing_again_has_no_effect(towers: list[tuple[Card, Path]]) -> None:
    for card, checkpoint in towers:
        _, model, fusion = fused(card, checkpoint)
        before = model.SerializeToString(deterministic=True)
        assert fuse(model).fused == fusion.fused
        assert model.SerializeToString(deterministic=True) == before


def test_fp16_agrees_with_casts_only_at_the_ends(towers: list[tuple[Card, Path]]) -> None:
    for card, checkpoint in towers:
        plain, model, fusion = fused(card, checkpoint)
        lowered = halved(model, "fp16", FUSED_EXACT_OPS["fp16"])
        onnx.checker.check_model(lowered)
        found = run(lowered, **inputs(card))  # the CPU provider casts around operators that it has only in float32
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, plain, atol=5e-3)
        kinds = Counter(node.op_type for node in lowered.graph.node)
        assert all(kinds[name] == count for name, count in fusion.fused.items())
        assert kinds["Cast"] <= 8  # casts around every operator of 3 layers would be dozens


@pytest.mark.parametrize("precision", HALVES)
def test_fused_operators_take_and_give_16_bits(towers: list[tuple[Card, Path]], precision: str) -> None:
    for card, checkpoint in towers:
        _, model, _ = fused(card, checkpoint)
        lowered = halved(model, precision, FUSED_EXACT_OPS[precision])
        graph = lowered.graph
        kinds = {weight.name: weight.data_type for weight in graph.initializer}
        kinds |= {node.output[0]: helper.get_attribute_value(node.attribute[0]) for node in graph.node
                  if node.op_type == "Cast"}  # fmt: skip
        for node in graph.node:
            half = HALVES[precision]
            if node.domain == DOMAIN or node.op_type in ("MatMul", "LayerNormalization"):
                found = {kinds[name] for name in node.input if name in kinds} - {TensorProto.INT32, TensorProto.INT64}
                assert found <= {half}, node.name
            if node.op_type in ("ReduceL2", "Softmax"):
                assert kinds.get(node.input[0]) == TensorProto.FLOAT, node.name
            if node.op_type == "Conv":
                assert kinds[node.input[1]] == (TensorProto.FLOAT if precision == "bf16" else half)


def test_graphs_that_do_not_match_are_not_changed() -> None:
    """A softmax over another axis, a mask that is not for padding, and a convolutional graph."""
    chance = np.random.default_rng(0)
    shape = numpy_helper.from_array(np.array([0, 0, 2, 4]), "shape")
    joined = numpy_helper.from_array(np.array([0, 0, 8]), "joined")
    examples = {"x": chance.normal(size=(2, 3, 8)).astype(np.float32), "m": np.zeros((2, 1, 1, 3), np.float32)}
    for axis, masked in ((2, False), (-1, True), (-1, False)):
        nodes = [
            helper.make_node("Reshape", ["x", "shape"], ["heads"]),
            helper.make_node("Transpose", ["heads"], ["q"], perm=[0, 2, 1, 3]),
            helper.make_node("Transpose", ["heads"], ["k"], perm=[0, 2, 3, 1]),
            helper.make_node("MatMul", ["q", "k"], ["products"]),
            helper.make_node("Add", ["products", "m"], ["masked"]),
            helper.make_node("Softmax", ["masked" if masked else "products"], ["shares"], axis=axis),
            helper.make_node("MatMul", ["shares", "q"], ["mixed"]),
            helper.make_node("Transpose", ["mixed"], ["turned"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", ["turned", "joined"], ["y"]),
        ]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name, x in examples.items()]
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 8])
        model = helper.make_model(
            helper.make_graph(nodes, "g", values, [out], [shape, joined]),
            opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
        )  # fmt: skip
        plain = run(model, **examples)
        fusion = fuse(model)
        assert fusion.fused["MultiHeadAttention"] == (axis == -1 and not masked)
        np.testing.assert_allclose(run(model, **examples), plain, atol=1e-6)
    model = open_nsfw.build()
    before = [node.output[0] for node in model.graph.node]
    fusion = fuse(model)
    assert not fusion.fused and [node.output[0] for node in model.graph.node] == before
    assert [opset.domain for opset in model.opset_import] == [""]
