"""ONNX graphs, written node by node."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from danqing.engine.core.files import commit

LARGE = 1 << 28
"""Bytes of weights from which on they are kept beside the model's file, for one message holds 2 GiB at most."""
SMALL = 1 << 10
"""Bytes of a weight that always stands in the model's file: shapes and the like, which its checker must see."""

Inputs = Mapping[str, tuple[int, list[Any]]]
"""Name → element type and shape; a string in a shape is a free dimension."""
Outputs = Mapping[str, list[Any]]
"""Name → shape of float32."""


class Graph:
    """Nodes and weights in the order they are added; equal calls serialise to equal bytes.

    Nodes are named after the place in the network that is being written (`at`), so that a profile can be read.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, np.ndarray] = {}
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

    def model(self, name: str, inputs: Inputs, outputs: Outputs) -> onnx.ModelProto:
        """The whole as one message."""
        return Network(self, name, inputs, outputs).model()

    def weight(self, array: np.ndarray | np.generic, name: str = "") -> str:
        """An initializer; returns its name, by which several nodes may share it."""
        name = name or f"w{len(self._weights)}"
        self._weights[name] = np.asarray(array)
        return name


class Network(NamedTuple):
    """A finished graph with its inputs and outputs, as one message or in files."""

    graph: Graph
    name: str
    inputs: Inputs
    outputs: Outputs

    def model(self) -> onnx.ModelProto:
        tensors = [numpy_helper.from_array(array, key) for key, array in self.graph._weights.items()]
        model = self._message(tensors)
        onnx.checker.check_model(model, full_check=True)
        return model

    def save(self, path: Path) -> list[Path]:
        """Writes `path` and, for a large model, `path` + ".data" with the weights, each straight from where it lies.

        The model's file names the SHA-256 of its weights (metadata `weights_sha256`): its own hash stands for both.

        Returns:
            The files written.
        """
        weights = self.graph._weights
        if sum(array.nbytes for array in weights.values()) < LARGE:
            with commit(path) as file:
                file.write(self.model().SerializeToString())
            return [path]
        data = path.with_name(f"{path.name}.data")
        tensors, digest, offset = [], hashlib.sha256(), 0
        with commit(data) as file:
            for key, array in weights.items():
                if array.nbytes < SMALL:
                    tensors.append(numpy_helper.from_array(array, key))
                    continue
                content = np.ascontiguousarray(array).data.cast("B")
                file.write(content)
                digest.update(content)
                tensors.append(_external(key, array, data.name, offset))
                offset += array.nbytes
        model = self._message(tensors)
        helper.set_model_props(model, {"weights_sha256": digest.hexdigest()})
        with commit(path) as file:
            file.write(model.SerializeToString())
        onnx.checker.check_model(str(path), full_check=True)
        return [path, data]

    def _message(self, tensors: list[onnx.TensorProto]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.graph._nodes,
            self.name,
            [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in self.inputs.items()],
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in self.outputs.items()],
            tensors,
        )
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, producer_name="danqing", opset_imports=[opset], ir_version=8)


def _external(name: str, array: np.ndarray, location: str, offset: int) -> onnx.TensorProto:
    """A weight whose bytes lie in another file beside the model's."""
    tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": array.nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
