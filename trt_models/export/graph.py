"""ONNX graphs, written node by node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGE = 1 << 30
"""Bytes of weights from which on they are kept beside the model's file, for one message holds 2 GiB at most."""


class Graph:
    """Nodes and weights in the order they are added; equal calls serialise to equal bytes.

    Nodes are named after the place in the network that is being written (`at`), so that a profile can be read.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._place = ""

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Names what is added inside the `with` block after this place, within the places around it."""
        before = self._place
        self._place = f"{before}{place}."
        try:
            yield
        finally:
            self._place = before

    def add(self, operator: str, *inputs: str | np.ndarray | np.generic, output: str = "", **attributes: Any) -> str:
        """One node; arrays and numbers among its inputs become initializers. Returns its (first) output's name."""
        name = f"{self._place}{operator}_{len(self._nodes)}"
        names = [entry if isinstance(entry, str) else self.weight(entry) for entry in inputs]
        self._nodes.append(helper.make_node(operator, names, [output or name], name, **attributes))
        return output or name

    def convolve(
        self, x: str, weight: np.ndarray, bias: np.ndarray, stride: int = 1, pads: tuple[int, ...] = (0, 0, 0, 0)
    ) -> str:
        """x (N, C, H, W) * weight (D, C / groups, k, k) + bias (D,); one input channel a kernel means depthwise."""
        groups = len(weight) if weight.shape[1] == 1 else 1
        return self.add("Conv", x, weight, bias, group=groups, strides=(stride, stride), pads=pads)

    def unit(self, x: str, output: str = "") -> str:
        """x (N, D) with rows of L2 norm 1; a zero row stays zero."""
        norm = self.add("Max", self.add("ReduceL2", x, axes=[1]), np.float32(1e-12))
        return self.add("Div", x, norm, output=output)

    def model(
        self, name: str, inputs: Mapping[str, tuple[int, list[Any]]], outputs: Mapping[str, list[Any]]
    ) -> onnx.ModelProto:
        """Name → (element type, shape) in, name → shape of float32 out; a string in a shape is a free dimension."""
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in outputs.items()],
            list(self._weights.values()),
        )
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(graph, producer_name="danqing", opset_imports=[opset], ir_version=8)
        if sum(len(weight.raw_data) for weight in self._weights.values()) < LARGE:  # larger ones: once they are files
            onnx.checker.check_model(model, full_check=True)
        return model

    def weight(self, array: np.ndarray | np.generic, name: str = "") -> str:
        """An initializer; returns its name, by which several nodes may share it."""
        name = name or f"w{len(self._weights)}"
        self._weights[name] = numpy_helper.from_array(np.asarray(array), name)
        return name
