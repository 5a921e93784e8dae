"""Replaces nodes of a float32 graph by ONNX Runtime's fused operators: attention, residual sum with layer
normalisation, GELU, rotary embedding.

Its CUDA provider has one kernel for each, in float32, fp16 and bf16, which sums in float32. The patterns are those that
`trt_models.export` writes, operand by operand; nodes of other graphs that do not match stay as they are. ONNX Runtime's
own optimizer (`onnxruntime.transformers`) is not used: it applies 1/√d a second time, since the exporter has folded it
into Q (outputs are wrong by 3.8e-3, without an error; here `scale` is 1), it needs a model type for every architecture,
and it does not fuse attention with a rotary embedding (EVA-02) or with our padding mask (BERT).

`Reshape` and `Transpose` around attention are part of the fused operator, so their shape constants are removed, too.
One node still computes a shape: BERT's `Shape(tokens)`, which cuts the positions to the captions' length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from danqing.trt_models.nodes import attributes_of, live_nodes
from danqing.trt_models.patterns import GELU, SILU, TANH_GELU, Pattern

DOMAIN = "com.microsoft"
MASKED_LOGIT = -10_000.0
"""The value that `padding_mask` adds to the logits of padding."""

# In these patterns a dictionary at the end of a node holds attributes that the node must have.
QUICK_GELU: Pattern = ("Mul", "x", ("Sigmoid", ("Mul", "x", 1.702)))
LINEAR: Pattern = ("Add", ("MatMul", "x", "weight"), "bias")


def _heads(name: str, *order: int) -> Pattern:
    """(N, T, width) as (N, heads, T, width / heads), or with its last two axes exchanged."""
    return "Transpose", ("Reshape", name, f"{name} shape"), {"perm": list(order)}


def _rotated(name: str) -> Pattern:
    """Heads with a rotary embedding: (a, b), the halves of the last axis, times cos, plus (-b, a) times sin."""
    x = _heads(name, 0, 2, 1, 3)
    a, b = (("Slice", x, f"{name} {half} from", f"{name} {half} to", f"{name} {half} axis") for half in "ab")
    return "Add", ("Mul", x, "cos"), ("Mul", ("Concat", ("Neg", b), a), "sin")


def _attention(q: Pattern, k: Pattern, masked: bool = False) -> Pattern:
    logits: Pattern = ("MatMul", q, k)
    shares: Pattern = ("Softmax", ("Add", logits, "mask") if masked else logits, {"axis": -1})
    mixed: Pattern = ("MatMul", shares, _heads("v", 0, 2, 1, 3))
    return "Reshape", ("Transpose", mixed, {"perm": [0, 2, 1, 3]}), "joined shape"


_Q, _K = _heads("q", 0, 2, 1, 3), _heads("k", 0, 2, 3, 1)
ATTENTION = _attention(_Q, _K)
MASKED_ATTENTION = _attention(_Q, _K, masked=True)
ROTARY_ATTENTION = _attention(_rotated("q"), ("Transpose", _rotated("k"), {"perm": [0, 1, 3, 2]}))
PADDING_MASK: Pattern = ("Unsqueeze", ("Mul", ("Cast", "is pad"), MASKED_LOGIT), "axes")


@dataclass
class Fusion:
    """Node counts of one fusion.

    Attributes:
        nodes_before, nodes: nodes of the graph before and after.
        fused: fused operator → number of its nodes in the graph.
        left: plain operator → number of its nodes that a fused operator could have replaced, but did not.
    """

    nodes_before: int
    nodes: int = 0
    fused: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        return {"fused": dict(self.fused), "left": dict(self.left), "nodes": [self.nodes_before, self.nodes]}


def fuse(model: onnx.ModelProto) -> Fusion:
    """Rewrites the model in place; its outputs stay the same to rounding (1e-6).

    Args:
        model: in float32, with its weights.

    Returns:
        Node counts.
    """
    return _Rewriting(model).result()


class _Rewriting:
    """Replaces the last node of each match by a fused node with the same output name, then drops unread nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = list(model.graph.node)
        self.weights = {weight.name: weight for weight in model.graph.initializer}
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.new_weights: dict[str, onnx.TensorProto] = {}
        self.replacements: dict[str, list[onnx.NodeProto]] = {}
        """First output of a node → the nodes that replace it."""
        self.fusion = Fusion(len(self.nodes))

    def result(self) -> Fusion:
        for node in self.nodes:
            for fused in (self._attention, self._gelu, self._normalisation):
                if fused(node):
                    break
        rewritten = [node for old in self.nodes for node in self.replacements.get(old.output[0], [old])]
        kept = live_nodes(rewritten, [output.name for output in self.graph.output])
        used = {name for node in kept for name in node.input}
        for position in reversed(range(len(self.graph.initializer))):
            if self.graph.initializer[position].name not in used:
                del self.graph.initializer[position]
        self.graph.initializer.extend(weight for name, weight in self.new_weights.items() if name in used)
        del self.graph.node[:]
        self.graph.node.extend(kept)
        ours = [node for node in kept if node.domain == DOMAIN]
        # onnx's shape inference does not know the operators of this domain, so their types are declared.
        declared = {value.name for value in self.graph.value_info}
        self.graph.value_info.extend(
            helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
            for node in ours
            for output in node.output
            if output and output not in declared
        )
        if ours and all(opset.domain != DOMAIN for opset in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        self.fusion.nodes = len(kept)
        self.fusion.fused.update(node.op_type for node in ours)
        self.fusion.left.update(
            node.op_type
            for node in kept
            if node.op_type in ("LayerNormalization", "Erf")
            or (node.op_type == "Softmax" and any(node.output[0] in n.input for n in kept if n.op_type == "MatMul"))
        )
        return self.fusion

    # ── patterns ──

    def _matches(self, name: str, pattern: Pattern, found: dict[str, str]) -> bool:
        if isinstance(pattern, str):
            return found.setdefault(pattern, name) == name
        if isinstance(pattern, float):
            return (value := self._scalar(name)) is not None and abs(value - pattern) <= 1e-6 * abs(pattern)
        node = self.producers.get(name)
        kind, *operands = pattern
        wanted: Mapping[str, Any] = operands.pop() if isinstance(operands[-1], dict) else {}
        if node is None or node.op_type != kind or len(node.input) != len(operands):
            return False
        attributes = attributes_of(node)
        return all(attributes.get(key) == value for key, value in wanted.items()) and all(
            self._matches(operand, part, found) for operand, part in zip(node.input, operands, strict=True)
        )

    def _found(self, node: onnx.NodeProto, pattern: Pattern) -> dict[str, str] | None:
        """Matches a pattern whose last node is `node`: names of the pattern → tensors, or None."""
        found: dict[str, str] = {}
        return found if self._matches(node.output[0], pattern, found) else None

    def _array(self, name: str) -> np.ndarray | None:
        weight = self.weights.get(name)
        return None if weight is None else numpy_helper.to_array(weight)

    def _scalar(self, name: str) -> float | None:
        weight = self.weights.get(name)
        return float(numpy_helper.to_array(weight)) if weight is not None and not weight.dims else None

    def _linear(self, name: str) -> dict[str, str] | None:
        """Returns `product` and `bias` if the tensor is the output of a linear layer, else None."""
        found: dict[str, str] = {}
        if not self._matches(name, LINEAR, found) or not {found["weight"], found["bias"]} <= self.weights.keys():
            return None
        if len(self.weights[found["bias"]].dims) != 1:
            return None
        return {"product": self.producers[name].input[0], "bias": found["bias"]}

    def _add_weight(self, name: str, array: np.ndarray) -> str:
        if name not in self.new_weights:
            self.new_weights[name] = numpy_helper.from_array(array, name)
        return name

    # ── fused operators ──

    def _attention(self, node: onnx.NodeProto) -> bool:
        """Writes com.microsoft::MultiHeadAttention on (N, T, width), with the biases of Q, K and V unless rotated."""
        patterns = (ATTENTION, MASKED_ATTENTION, ROTARY_ATTENTION)
        found = next((f for pattern in patterns if (f := self._found(node, pattern)) is not None), None)
        if found is None or (heads := self._heads_of(found)) is None:
            return False
        before: list[onnx.NodeProto] = []
        q, k, v, bias, mask = found["q"], found["k"], found["v"], "", ""
        if "mask" in found:
            pads: dict[str, str] = {}
            if not self._matches(found["mask"], PADDING_MASK, pads):
                return False
            if self.producers[pads["is pad"]].op_type != "Equal":
                return False
            mask = self._key_padding_mask(pads["is pad"], before)
        layers = [self._linear(name) for name in (q, k, v)]
        if "cos" in found:
            if not self._rotates_by_halves(found):
                return False
            q, k = (self._rotate(name, found, before) for name in (q, k))
        elif all(layers):
            q, k, v = (layer["product"] for layer in layers if layer)
            parts = [self._array(layer["bias"]) for layer in layers if layer]
            # Named after the output: ONNX requires unique names of tensors, but a node needs no name.
            name = f"{node.output[0]}.qkv_bias"
            bias = self._add_weight(name, np.concatenate([part for part in parts if part is not None]))
        inputs = [q, k, v, bias, mask]
        while not inputs[-1]:
            inputs.pop()
        fused = helper.make_node(
            "MultiHeadAttention", inputs, list(node.output), node.name, domain=DOMAIN, num_heads=heads,
            scale=1.0, mask_filter_value=MASKED_LOGIT,
        )  # fmt: skip
        self.replacements[node.output[0]] = [*before, fused]
        return True

    def _heads_of(self, found: Mapping[str, str]) -> int | None:
        """Returns the number of heads; None unless the shapes are (0, 0, heads, size) of q, k, v and (0, 0, width)."""
        shapes = [self._array(found[f"{name} shape"]) for name in ("q", "k", "v", "joined")]
        match [() if shape is None else tuple(shape.tolist()) for shape in shapes]:
            case [(0, 0, heads, size), k, v, joined] if k == v == (0, 0, heads, size) and joined == (
                0,
                0,
                heads * size,
            ):
                return int(heads) if heads > 0 and size > 0 else None
        return None

    def _key_padding_mask(self, is_pad: str, before: list[onnx.NodeProto]) -> str:
        """Writes the mask int32 (N, T), 1 for a token and 0 for padding, once, before the first attention."""
        mask = f"{is_pad}.key_padding_mask"
        if mask not in self.producers:
            no_pad = helper.make_node("Not", [is_pad], [f"{is_pad}.not"], f"{is_pad}.not")
            self.producers[mask] = helper.make_node("Cast", [f"{is_pad}.not"], [mask], mask, to=TensorProto.INT32)
            before += [no_pad, self.producers[mask]]
        return mask

    def _rotates_by_halves(self, found: Mapping[str, str]) -> bool:
        """Whether RotaryEmbedding computes this rotary embedding: of the halves [0, h) and [h, 2 h) of a head, with
        equal tables (T, 2 h) for both (`trt_models.export.eva`)."""
        tables = [self._array(found[name]) for name in ("cos", "sin")]
        if any(table is None or table.ndim != 2 for table in tables):
            return False
        halves = [np.split(table, 2, axis=1) for table in tables if table is not None]
        half = halves[0][0].shape[1]
        bounds = {"a from": 0, "a to": half, "a axis": 3, "b from": half, "b to": 2 * half, "b axis": 3}
        return all((a == b).all() for a, b in halves) and all(
            (array := self._array(found[f"{name} {bound}"])) is not None and array.tolist() == [value]
            for name in "qk"
            for bound, value in bounds.items()
        )

    def _rotate(self, name: str, found: Mapping[str, str], before: list[onnx.NodeProto]) -> str:
        """Writes com.microsoft::RotaryEmbedding on (N, T, width), for positions 0, 1, …"""
        tables = []
        for table in ("cos", "sin"):
            whole = self._array(found[table])
            assert whole is not None
            tables.append(self._add_weight(f"{found[table]}.half", np.ascontiguousarray(np.split(whole, 2, axis=1)[0])))
        first = self._add_weight("rope.first_position", np.zeros(1, np.int64))
        out = f"{name}.rotated"
        before.append(
            helper.make_node("RotaryEmbedding", [name, first, *tables], [out], out, domain=DOMAIN, interleaved=0)
        )
        return out

    def _gelu(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "Mul":
            return False
        for pattern, kind, alpha in (
            (QUICK_GELU, "QuickGelu", 1.702), (SILU, "QuickGelu", 1.0), (GELU, "Gelu", None),
            (TANH_GELU, "FastGelu", None),
        ):  # fmt: skip
            found = self._found(node, pattern)
            if found is None:
                continue
            inputs = [found["x"]]
            attributes: dict[str, Any] = {} if alpha is None else {"alpha": alpha}
            layer = None if alpha else self._linear(found["x"])
            if layer:
                inputs = [layer["product"], layer["bias"]]
                kind = "BiasGelu" if kind == "Gelu" else kind
            self.replacements[node.output[0]] = [
                helper.make_node(kind, inputs, list(node.output), node.name, domain=DOMAIN, **attributes)
            ]
            return True
        return False

    def _normalisation(self, node: onnx.NodeProto) -> bool:
        """Writes com.microsoft::SkipLayerNormalization of residual + linear layer. It also outputs the sum, which the
        next residual reads."""
        if node.op_type != "LayerNormalization" or len(node.input) != 3 or len(node.output) != 1:
            return False
        total = self.producers.get(node.input[0])
        if total is None or total.op_type != "Add" or total.output[0] in self.replacements:
            return False
        skip, layer = total.input[0], self._linear(total.input[1])
        if layer is None or skip in self.weights:
            return False
        attributes = attributes_of(node)
        epsilon = attributes.get("epsilon", 1e-5)  # ONNX's default
        if attributes.get("axis", -1) != -1:
            return False
        fused = helper.make_node(
            "SkipLayerNormalization", [layer["product"], skip, *node.input[1:3], layer["bias"]],
            [node.output[0], "", "", total.output[0]], node.name, domain=DOMAIN, epsilon=epsilon,
        )  # fmt: skip
        self.replacements[total.output[0]], self.replacements[node.output[0]] = [fused], []
        return True
