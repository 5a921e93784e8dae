"""Replaces groups of ONNX nodes that torch computes in one call: attention, linear layers, activations, 16-bit norms.

Fewer calls mean fewer passes over the activations. On a GPU these take most of a transformer's time, after the matrix
products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from danqing.trt_models.nodes import attributes_of, live_nodes
from danqing.trt_models.patterns import GELU, SILU, TANH_GELU, Pattern
from danqing.trt_models.precision import HALVES

TYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64, TensorProto.UINT8: torch.uint8, TensorProto.INT8: torch.int8,
    TensorProto.INT32: torch.int32, TensorProto.INT64: torch.int64, TensorProto.BOOL: torch.bool,
}  # fmt: skip
COMMUTATIVE_OPS = ("Add", "Mul")
CONSTANT_TOLERANCE = 5e-3
"""Maximum relative difference between a graph's constant and a pattern's. Rounding to bf16 changes a constant by up to
2^-9 = 2e-3."""

# In these patterns the root is the group's last node; a string in capitals matches a weight, equal strings match the
# same tensor, and ("Cast?", x) matches x after any number of casts.
_LOGITS: Pattern = ("Cast?", ("MatMul", "q", "k"))
_HIDDEN: Pattern = ("Add", ("MatMul", "x", "W1"), "B1")

ATTENTION: Pattern = ("MatMul", ("Cast?", ("Softmax", _LOGITS)), "v")
MASKED_ATTENTION: Pattern = ("MatMul", ("Cast?", ("Softmax", ("Cast?", ("Add", _LOGITS, "mask")))), "v")
LINEAR: Pattern = ("Add", ("MatMul", "x", "W"), "B")
QUICK_GELU_SCALE = 1.702
QUICK_GELU_MLP: Pattern = (
    "Add", ("MatMul", ("Mul", _HIDDEN, ("Sigmoid", ("Mul", _HIDDEN, QUICK_GELU_SCALE))), "W2"), "B2",
)  # fmt: skip
HALF_NORM: Pattern = ("Cast", ("LayerNormalization", ("Cast", "x"), "G", "B"))


class Weights:
    """A graph's initializers as torch tensors in host memory, and weights derived from them under new names.

    Args:
        graph: keeps the stored weights, which are converted when they are read.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._derived: dict[str, torch.Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._stored or name in self._derived

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._derived:
            return self._derived[name]
        stored = self._stored[name]
        array = numpy_helper.to_array(stored)
        if stored.data_type == TensorProto.BFLOAT16:  # NumPy has no bf16; float32 holds it exactly
            return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
        return torch.from_numpy(array.copy())

    def rank(self, name: str) -> int:
        """Returns the number of axes of a weight."""
        return len(self._stored[name].dims) if name in self._stored else self._derived[name].ndim

    def scalar(self, name: str) -> float | None:
        """Returns the value of a stored weight without axes; None for other tensors."""
        return float(self[name]) if name in self._stored and self.rank(name) == 0 else None

    def derive(self, name: str, change: str, how: Callable[[torch.Tensor], torch.Tensor]) -> str:
        """Adds a weight computed from another one.

        Args:
            name: the other weight.
            change: suffix of the new name.
            how: computes the new weight.

        Returns:
            The new weight's name.
        """
        derived = f"{name}.{change}"
        if derived not in self._derived:
            self._derived[derived] = how(self[name])
        return derived


def fuse_nodes(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], Weights]:
    """Replaces the groups that match a pattern and drops the nodes that no output depends on.

    Args:
        graph: a model's graph with its weights; not modified.

    Returns:
        The nodes in order of execution, and the weights that they name. New operators, with weights in torch's layout:
        Attention(q, k, v, mask?), Linear(x, W, B), Silu(x), Gelu(x), QuickGeluMlp(x, W1, B1, W2, B2).
        LayerNormalization between casts becomes one on 16 bits, whose statistics torch computes in float32.
    """
    fusion = _Fusion(graph)
    nodes = [fusion.replaced(node) for node in graph.node]
    return live_nodes(nodes, [output.name for output in graph.output]), fusion.weights


class _Fusion:
    """Matches the patterns, in order, against each node of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.weights = Weights(graph)
        self._producers = {output: node for node in graph.node for output in node.output}
        self._rules: tuple[tuple[Pattern, Callable[[onnx.NodeProto, dict[str, Any]], onnx.NodeProto | None]], ...] = (
            (MASKED_ATTENTION, self._attention),
            (ATTENTION, self._attention),
            (QUICK_GELU_MLP, self._quick_gelu_mlp),
            (LINEAR, self._linear),
            (GELU, lambda node, found: _node("Gelu", node, found["x"])),
            (TANH_GELU, lambda node, found: _node("Gelu", node, found["x"], approximate="tanh")),
            (SILU, lambda node, found: _node("Silu", node, found["x"])),
            (HALF_NORM, self._half_norm),
        )

    def replaced(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Returns the node that replaces the group whose last node this is; the node itself if there is none."""
        for pattern, rule in self._rules:
            for found in self._matches(pattern, node.output[0], {}):
                replacement = rule(node, found)
                if replacement is not None:
                    return replacement
        return node

    def _matches(self, pattern: Pattern, name: str, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Matches a tensor against a pattern.

        Args:
            pattern: a pattern or a part of one.
            name: the tensor.
            found: what the rest of the pattern has matched so far.

        Yields:
            For each way to match: names and operators of the pattern → tensors and nodes of the graph.
        """
        if isinstance(pattern, float):
            value = self.weights.scalar(name)
            if value is not None and math.isclose(value, pattern, rel_tol=CONSTANT_TOLERANCE):
                yield found
            return
        if isinstance(pattern, str):
            if found.get(pattern, name) == name and (pattern.islower() or name in self.weights):
                yield found | {pattern: name}
            return
        operator, *inputs = pattern
        node = self._producers.get(name)
        if operator == "Cast?":
            yield from self._matches(inputs[0], name, found)
            if node is not None and node.op_type == "Cast":
                yield from self._matches(pattern, node.input[0], found)
            return
        if node is None or node.op_type != operator or len(node.input) != len(inputs):
            return
        orders = (node.input, node.input[::-1]) if operator in COMMUTATIVE_OPS else (node.input,)
        for names in orders:
            yield from self._all_match(inputs, list(names), found | {operator: node})

    def _all_match(self, patterns: list[Pattern], names: list[str], found: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not patterns:
            yield found
            return
        for more in self._matches(patterns[0], names[0], found):
            yield from self._all_match(patterns[1:], names[1:], more)

    def _attention(self, node: onnx.NodeProto, found: dict[str, Any]) -> onnx.NodeProto | None:
        if attributes_of(found["Softmax"]).get("axis", -1) != -1:
            return None
        names = (found[name] for name in ("q", "k", "v", "mask") if name in found)
        return _node("Attention", node, *names)

    def _linear(self, node: onnx.NodeProto, found: dict[str, Any]) -> onnx.NodeProto | None:
        if not self._is_linear(found["W"], found["B"]):
            return None
        return _node("Linear", node, found["x"], self._transposed(found["W"]), found["B"])

    def _quick_gelu_mlp(self, node: onnx.NodeProto, found: dict[str, Any]) -> onnx.NodeProto | None:
        """Uses x sigmoid(s x) = silu(s x) / s: multiplies the first layer's weights by s and the second's by 1 / s."""
        if not (self._is_linear(found["W1"], found["B1"]) and self._is_linear(found["W2"], found["B2"])):
            return None
        first = (self._scaled(name, QUICK_GELU_SCALE) for name in (self._transposed(found["W1"]), found["B1"]))
        second = self._scaled(self._transposed(found["W2"]), 1 / QUICK_GELU_SCALE)
        return _node("QuickGeluMlp", node, found["x"], *first, second, found["B2"])

    def _half_norm(self, node: onnx.NodeProto, found: dict[str, Any]) -> onnx.NodeProto | None:
        kind = attributes_of(node)["to"]
        if kind not in HALVES.values():
            return None
        gamma, beta = (
            self.weights.derive(found[name], f"as_{kind}", lambda weight: weight.to(TYPES[kind])) for name in "GB"
        )
        return _node("LayerNormalization", node, found["x"], gamma, beta, **attributes_of(found["LayerNormalization"]))

    def _is_linear(self, weight: str, bias: str) -> bool:
        return self.weights.rank(weight) == 2 and self.weights.rank(bias) == 1

    def _transposed(self, name: str) -> str:
        return self.weights.derive(name, "transposed", torch.t)

    def _scaled(self, name: str, factor: float) -> str:
        return self.weights.derive(
            name, f"times_{factor:.6g}", lambda weight: (weight.float() * factor).to(weight.dtype)
        )


def _node(operator: str, last: onnx.NodeProto, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    """Makes a node that replaces a group, with the output and the name of the group's last node."""
    return helper.make_node(operator, inputs, last.output[:1], last.name, **attributes)
