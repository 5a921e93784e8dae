"""Rewrites a float32 graph to fp16 or bf16 with explicit casts, for TensorRT's strongly typed networks.

Operators that overflow or lose most in 16 bits stay in float32: softmax, layer normalisation, sums of squares, and the
arithmetic on pixels before the first layer. Mixed-precision training does the same (Micikevicius et al., arXiv
1710.03740).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.trt_models.nodes import attributes_of

HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
EXACT_OPS = frozenset(
    (
        "LayerNormalization", "LogSoftmax", "Softmax", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare",
        "LpNormalization", "Sqrt", "Exp", "Log", "Pow",
    )
)  # fmt: skip
"""Operators that compute in float32, between casts from and to 16 bits."""
FUSED_EXACT_OPS = {
    "fp16": EXACT_OPS - {"LayerNormalization"},
    "bf16": (EXACT_OPS - {"LayerNormalization"}) | {"Conv", "Pad"},
}
"""Precision → operators that compute in float32 on ONNX Runtime's CUDA provider, after `onnx_fusion`.

Its LayerNormalization and fused operators take 16 bits and sum in float32 (SkipLayerNormalization since
github.com/microsoft/onnxruntime/pull/28682). In version 17 of ONNX's operators, which our graphs use, it has neither
convolution nor padding in bf16."""
FOLLOWING_OPS = frozenset(
    (
        "Add", "Sub", "Mul", "Div", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Clip", "Max", "Min",
        "Cast", "Gather", "GatherElements",
    )
)  # fmt: skip
"""Operators that compute in float32 if an operand is float32: on pixels before the first layer, on lengths and
probabilities after the last."""


def halved(model: onnx.ModelProto, precision: str, exact: frozenset[str] = EXACT_OPS) -> onnx.ModelProto:
    """Lowers a model to 16 bits.

    Args:
        model: in float32, with its weights; not modified.
        precision: `fp16` or `bf16`.
        exact: names of the operators that compute in float32.

    Returns:
        A new model. Its inputs and outputs have the types they had.

    Raises:
        DanqingError: an unknown precision, or a weight that fp16 cannot hold.
    """
    if precision not in HALVES:
        raise DanqingError(f"precision {precision!r}; {did_you_mean(precision, HALVES)}")
    return _Lowering(model, HALVES[precision], exact).result()


class _Lowering:
    """Rewrites the nodes in order.

    Attributes:
        half, single: names of the tensors that exist in 16 bits and in float32.
    """

    def __init__(self, model: onnx.ModelProto, half: int, exact: frozenset[str]) -> None:
        self.model, self.type, self.exact = _without_weights(model), half, exact
        self.graph = self.model.graph
        self.weights = {w.name: w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT}
        self.others = [w for w in model.graph.initializer if w.data_type != TensorProto.FLOAT]
        self.half: set[str] = set()
        self.single = {i.name for i in self.graph.input if i.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[str, onnx.TensorProto] = {}
        self.floats = _float_tensors(self.model, self.weights, self.others)

    def result(self) -> onnx.ModelProto:
        for node in self.graph.node:
            self._rewrite(node)
        for output in self.graph.output:
            if output.name in self.half:
                self._rename_output(output.name)
        used = {name for node in self.nodes for name in node.input}
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        weights = (*self.others, *self.weights.values(), *self.made.values())
        self.graph.initializer.extend(w for w in weights if w.name in used)
        return self.model

    def _rewrite(self, node: onnx.NodeProto) -> None:
        operands = [name for name in node.input if name in self.half or name in self.single]
        exact = node.op_type in self.exact
        follows = node.op_type in FOLLOWING_OPS and any(name in self.single for name in operands)
        to_float = node.op_type == "Cast" and attributes_of(node).get("to") == TensorProto.FLOAT
        if to_float and not operands:  # converts integers: pixels or counts
            self.single.update(node.output)
        elif exact or follows:
            self._inputs(node, self._as_single)
            normal = node.op_type == "LayerNormalization"
            for output in node.output:
                if output in self.floats:
                    (self.half if normal else self.single).add(output)
            if normal:  # cast back at once, or `FOLLOWING_OPS` would keep the residual sums after it in float32
                output = node.output[0]
                node.output[0] = f"{output}.single"
                self.nodes.append(node)
                self.nodes.append(
                    helper.make_node("Cast", [f"{output}.single"], [output], f"{output}.half", to=self.type)
                )
                return
        else:
            self._inputs(node, self._as_half)
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                    attribute.t.CopyFrom(self._lowered(attribute.t, attribute.t.name))
            if to_float:
                node.attribute[0].i = self.type
            self.half.update(output for output in node.output if output in self.floats)
        self.nodes.append(node)

    def _inputs(self, node: onnx.NodeProto, convert: Callable[[str], str]) -> None:
        for position, name in enumerate(node.input):
            if name in self.half or name in self.single or name in self.weights:
                node.input[position] = convert(name)

    def _as_single(self, name: str) -> str:
        if name in self.single or name in self.weights:
            return name
        return self._cast(name, f"{name}.as_single", TensorProto.FLOAT, self.single)

    def _as_half(self, name: str) -> str:
        if name in self.half:
            return name
        if name in self.weights:
            lowered = f"{name}.half"
            if lowered not in self.made:
                self.made[lowered] = self._lowered(self.weights[name], lowered)
            return lowered
        return self._cast(name, f"{name}.as_half", self.type, self.half)

    def _cast(self, name: str, cast: str, to: int, known: set[str]) -> str:
        if cast not in known:
            self.nodes.append(helper.make_node("Cast", [name], [cast], cast, to=to))
            known.add(cast)
        return cast

    def _rename_output(self, name: str) -> None:
        """Renames a 16-bit output of the graph and casts it to float32 under the old name."""
        inside = f"{name}.inside"
        for node in self.nodes:
            for names in (node.input, node.output):
                for position, found in enumerate(names):
                    if found == name:
                        names[position] = inside
        self.nodes.append(helper.make_node("Cast", [inside], [name], f"{name}.cast", to=TensorProto.FLOAT))

    def _lowered(self, tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
        values = numpy_helper.to_array(tensor)
        largest = np.abs(values).max(initial=0)
        if self.type == TensorProto.FLOAT16 and largest > np.finfo(np.float16).max:
            raise DanqingError(f"weight {tensor.name}: holds {largest:.4g}, which fp16 cannot; use bf16")
        return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(self.type)), name)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copies a model without its weights: two copies of a large model would not fit in memory."""
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = bare.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    return bare


def _float_tensors(
    bare: onnx.ModelProto, weights: Mapping[str, onnx.TensorProto], others: Sequence[onnx.TensorProto]
) -> set[str]:
    """Returns the names of all float32 tensors that nodes produce.

    The weights are declared as inputs, since shape inference would serialise their values.
    """
    model = onnx.ModelProto()
    model.CopyFrom(bare)
    model.graph.input.extend(helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights.values())
    model.graph.initializer.extend(others)
    inferred = onnx.shape_inference.infer_shapes(model)
    infos = (*inferred.graph.value_info, *inferred.graph.output)
    return {info.name for info in infos if info.type.tensor_type.elem_type == TensorProto.FLOAT}
