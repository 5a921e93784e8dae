"""Models in torch: exported graphs compared with ONNX Runtime, fused groups of nodes, and padded batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.profiling.bench.published import save
from danqing.trt_models.card import load_card
from danqing.trt_models.export import aesthetic, bert, chinese_clip, eva, siglip
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.precision import halved
from danqing.trt_models.run.torch_fusion import fuse_nodes
from danqing.trt_models.run.torch_graph import TorchGraph
from danqing.trt_models.run.torch_session import TorchSession, write_graph
from danqing.trt_models.store import onnx_path
from tests.trt_models import small_models
from tests.trt_models.small_models import PIXELS, WORDS, Predictor, ragged_tokens

Networks = dict[str, tuple[onnx.ModelProto, dict[str, np.ndarray]]]
CPU = torch.device("cpu")
LAYERS = 3
DEFAULTS = ("efficientnet-lite0-conse", "open-nsfw", "use-multilingual")
TRANSFORMERS = ("clip image", "clip text", "siglip image", "siglip text", "eva", "bert", "aesthetic")
NETWORKS = (*TRANSFORMERS, *DEFAULTS)
HALF_NETWORKS = (*TRANSFORMERS, "use-multilingual")
"""Networks that run in 16 bits. A CPU takes a minute for the depthwise convolutions of EfficientNet."""


def small_clip(folder: Path) -> dict[str, onnx.ModelProto]:
    """Exports both towers of a small Chinese-CLIP."""
    weights = Checkpoint(save(small_models.chinese_clip(), folder))
    return {
        "clip image": chinese_clip.image_tower(weights).model(),
        "clip text": chinese_clip.text_tower(weights).model(),
    }


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """Every exported architecture with random weights, and the default models; each with a batch of inputs."""

    def checkpoint(model: torch.nn.Module) -> Checkpoint:
        return Checkpoint(save(model, tmp_path_factory.mktemp("checkpoint")))

    clip = small_clip(tmp_path_factory.mktemp("clip"))
    sig, rated = checkpoint(small_models.siglip()), checkpoint(small_models.clip())
    torch.save(Predictor().state_dict(), rated.folder / aesthetic.HEAD_FILE)

    chance = np.random.default_rng(0)
    pixels, tokens = {"pixels": PIXELS}, {"tokens": ragged_tokens()}
    large = {"pixels": chance.integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)}
    found = {
        "clip image": (clip["clip image"], pixels),
        "clip text": (clip["clip text"], tokens),
        "siglip image": (siglip.image_tower(sig).model(), pixels),
        "siglip text": (
            siglip.text_tower(sig).model(), {"tokens": chance.integers(0, WORDS, (3, 16), dtype=np.int32)},
        ),
        "eva": (
            eva.classifier(checkpoint(small_models.eva(layers=LAYERS))).model(),
            {"pixels": chance.integers(0, 256, (3, 70, 70, 3), dtype=np.uint8)},
        ),
        "bert": (bert.classifier(checkpoint(small_models.bert())).model(), tokens),
        "language model": (
            bert.masked_language_model(checkpoint(small_models.masked_bert())).model(), small_models.masked_tokens(),
        ),
        "aesthetic": (aesthetic.predictor(rated).model(), pixels),
    }  # fmt: skip
    for name in DEFAULTS:
        inputs = {"tokens": chance.integers(-1, 9000, (3, 16), dtype=np.int32)} if "use" in name else large
        found[name] = (onnx.load(str(onnx_path(load_card(name)))), inputs)
    return found


def lower(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    return model if precision == "fp32" else halved(model, precision)


def run_in_torch(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.inference_mode():
        outputs = TorchGraph(model, CPU)(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return [tensor.numpy() for tensor in outputs.values()]


def run_in_onnx_runtime(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)  # type: ignore[no-any-return]


CASES = [("fp32", 1e-5, NETWORKS), ("fp16", 5e-3, HALF_NETWORKS), ("bf16", 4e-2, HALF_NETWORKS)]


@pytest.mark.parametrize(("precision", "tolerance", "name"), [(p, t, name) for p, t, names in CASES for name in names])
def test_exported_graphs_agree_with_onnx_runtime(
    networks: Networks, precision: str, tolerance: float, name: str
) -> None:
    model, inputs = networks[name]
    expected, found = run_in_onnx_runtime(model, inputs), run_in_torch(lower(model, precision), inputs)
    for left, right in zip(expected, found, strict=True):
        assert right.dtype == np.float32 and right.std() > 0
        np.testing.assert_allclose(right, left, atol=tolerance * max(1, np.abs(left).max()))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_groups_of_nodes_become_one_call(networks: Networks, precision: str) -> None:
    """Also with the casts that `halved` adds around softmax and normalisation."""
    found = {name: Counter(n.op_type for n in fuse_nodes(lower(networks[name][0], precision).graph)[0])
             for name in TRANSFORMERS}  # fmt: skip
    for name, calls in found.items():
        heads = 1 if name == "siglip image" else 0  # its pooling is an attention
        assert calls["Attention"] == LAYERS + heads, name
        assert calls["Softmax"] == (name in ("eva", "bert")), name  # over the classes
        assert not calls["Erf"] and calls["Tanh"] == (name == "bert"), name  # in its pooler
        assert calls["Cast"] < 2 * LAYERS + 2, name  # at the ends; fewer than two per layer normalisation
    assert found["clip image"]["QuickGeluMlp"] == found["aesthetic"]["QuickGeluMlp"] == LAYERS
    assert found["clip text"]["Gelu"] == found["siglip text"]["Gelu"] == found["bert"]["Gelu"] == LAYERS
    assert found["siglip image"]["Gelu"] == LAYERS + 1 and found["eva"]["Silu"] == LAYERS


@pytest.mark.parametrize("name", ["clip image", "bert", "use-multilingual"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_does_not_depend_on_the_others(
    networks: Networks, name: str, precision: str, device: Device, tmp_path: Path
) -> None:
    model, inputs = networks[name]
    onnx.save(model, str(tmp_path / "model.onnx"))
    write_graph(tmp_path / "model.onnx", tmp_path / "engine.onnx", precision)
    session = TorchSession(tmp_path / "engine.onnx", device, 2)
    input_name, array = next(iter(inputs.items()))
    array.flags.writeable = False
    together = next(iter(session.run(**inputs).values()))
    assert len(together) == len(array) and len(set(map(bytes, together))) == len(array)
    for row in range(len(array)):
        assert next(iter(session.run(**{input_name: array[row : row + 1]}).values())) == pytest.approx(
            together[row : row + 1], abs=0
        )


def graph(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """Makes a graph with the input x, float32 (N, 4), and the output y."""
    return helper.make_model(
        helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )  # fmt: skip


def test_the_error_for_an_unsupported_operator_names_the_node() -> None:
    node = helper.make_node
    for model, words in (
        (graph(node("Celu", ["x"], ["y"], "layer.9")), r"node layer\.9: the operator Celu is not supported"),
        (graph(node("Mod", ["x", "x"], ["y"], "m", fmod=1)), "node m: the attribute fmod of Mod is not supported"),
        (
            graph(node("Cast", ["x"], ["n"], to=TensorProto.INT64), node("Reshape", ["x", "n"], ["y"], "r")),
            "node r: the shape n depends on the values of an input",
        ),
        (
            graph(node("Shape", ["x"], ["n"]), node("Cast", ["n"], ["y"], "c", to=TensorProto.FLOAT)),
            "node c: the shape n takes part in a computation",
        ),
    ):
        with pytest.raises(DanqingError, match=words):
            TorchGraph(model, CPU)


def test_operators_agree_with_onnx_runtime() -> None:
    """With attributes and orders of operands that no exported graph has."""
    node, x = helper.make_node, np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    one, weight = np.float32(1), np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    for model in (
        graph(node("Softmax", ["x"], ["y"], axis=0)),
        graph(node("Slice", ["x", "s", "e", "a", "t"], ["y"]), s=np.array([-3]), e=np.array([2**62]), a=np.array([-1]),
              t=np.array([2])),
        graph(node("Clip", ["x", "", "m"], ["y"]), m=one * 0.2),
        graph(node("Gather", ["x", "i"], ["y"], axis=-1), i=np.array([[1, -1]])),
        graph(node("Unsqueeze", ["x", "a"], ["y"]), a=np.array([-1, 0])),
        graph(node("Gemm", ["x", "w", "b"], ["y"]), w=weight, b=weight[0]),
        graph(node("Max", ["x", "m", "m"], ["y"]), m=one * 0.1),
        graph(node("Pad", ["x", "p", "v"], ["y"]), p=np.array([1, 0, 0, 2]), v=one),
        # A product as the second operand of a sum; then a bias that is a matrix, which is not a linear layer.
        graph(node("MatMul", ["x", "w"], ["p"]), node("Add", ["b", "p"], ["y"]), w=weight, b=weight[0]),
        graph(node("MatMul", ["x", "w"], ["p"]), node("Add", ["b", "p"], ["y"]), w=weight, b=weight[:1]),
        # sigmoid(x) x, and a product of other tensors.
        graph(node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "x"], ["y"])),
        graph(node("Sigmoid", ["x"], ["s"]), node("Relu", ["x"], ["r"]), node("Mul", ["s", "r"], ["y"])),
        graph(node("Shape", ["x"], ["n"]), node("Gather", ["n", "zero"], ["k"]),
              node("Concat", ["k", "rest"], ["m"], axis=0),
              node("Unsqueeze", ["x", "zero"], ["u"]), node("Squeeze", ["u", "zero"], ["v"]),
              node("Reshape", ["v", "m"], ["y"]), zero=np.array([0]), rest=np.array([2, -1])),
        # One row repeated for every row of the input, with the shape on the host.
        graph(node("Shape", ["x"], ["n"]), node("Slice", ["n", "zero", "one"], ["rows"]),
              node("Concat", ["rows", "five"], ["m"], axis=0), node("Expand", ["b", "m"], ["y"]),
              zero=np.array([0]), one=np.array([1]), five=np.array([5]), b=weight[:1]),
    ):  # fmt: skip
        (expected,), (found,) = (run(model, {"x": x}) for run in (run_in_onnx_runtime, run_in_torch))
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-6)
