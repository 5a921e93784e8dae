"""Graphs in lower precision: their types and results."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from danqing.engine.core.errors import DanqingError
from danqing.profiling.bench.published import save
from danqing.trt_models.export import bert, chinese_clip
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.precision import halved
from tests.trt_models import small_models
from tests.trt_models.small_models import PIXELS, ragged_tokens, run


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[onnx.ModelProto, dict[str, np.ndarray]]]:
    clip = Checkpoint(save(small_models.chinese_clip(), tmp_path_factory.mktemp("clip")))
    return {
        "image": (chinese_clip.image_tower(clip).model(), {"pixels": PIXELS}),
        "text": (chinese_clip.text_tower(clip).model(), {"tokens": ragged_tokens()}),
        "classifier": (
            bert.classifier(Checkpoint(save(small_models.bert(), tmp_path_factory.mktemp("bert")))).model(),
            {"tokens": ragged_tokens()},
        ),
    }


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    infos = (*graph.value_info, *graph.input, *graph.output)
    found = {info.name: info.type.tensor_type.elem_type for info in infos}
    return found | {weight.name: weight.data_type for weight in graph.initializer}


@pytest.mark.parametrize("name", ["image", "text", "classifier"])
def test_fp16_agrees_and_sums_are_float32(graphs: Any, name: str) -> None:
    model, inputs = graphs[name]
    lowered = halved(model, "fp16")
    onnx.checker.check_model(lowered, full_check=True)
    kinds = types(lowered)
    for node in lowered.graph.node:
        wanted = TensorProto.FLOAT16 if node.op_type in ("MatMul", "Conv") else None
        if node.op_type in ("Softmax", "LayerNormalization", "ReduceL2"):
            wanted = TensorProto.FLOAT
        assert wanted is None or kinds[node.input[0]] == wanted, node.name
    assert [o.type.tensor_type.elem_type for o in lowered.graph.output] == [TensorProto.FLOAT]
    expected, found = run(model, **inputs), run(lowered, **inputs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=5e-3)
    weights = (sum(len(w.raw_data) for w in m.graph.initializer) for m in (lowered, model))
    assert next(weights) < 0.6 * next(weights)


def test_bf16_agrees() -> None:
    """Runs ONNX's reference evaluator, since ONNX Runtime has no bf16 on a CPU."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Softmax", ["y"], ["out"], axis=-1),
    ]
    source = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [source], [out], [weight]), opset_imports=[helper.make_opsetid("", 17)]
    )
    lowered = halved(model, "bf16")
    assert {TensorProto.BFLOAT16} == {w.data_type for w in lowered.graph.initializer}
    pixels = np.random.default_rng(1).integers(0, 4, (5, 8), dtype=np.uint8)
    (expected,), (found,) = (ReferenceEvaluator(m).run(None, {"pixels": pixels}) for m in (model, lowered))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_the_error_for_a_weight_too_large_for_fp16_names_it() -> None:
    weight = numpy_helper.from_array(np.full((8, 4), 1e5, np.float32), "heavy")
    nodes = [
        helper.make_node("Cast", ["p"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "heavy"], ["o"]),
    ]
    source = helper.make_tensor_value_info("p", TensorProto.UINT8, ["N", 8])
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, ["N", 4])
    model = helper.make_model(helper.make_graph(nodes, "g", [source], [out], [weight]))
    with pytest.raises(DanqingError, match=r"weight heavy: holds 1e\+05, which fp16 cannot; use bf16"):
        halved(model, "fp16")
    with pytest.raises(DanqingError, match="precision 'fp8'"):
        halved(model, "fp8")
