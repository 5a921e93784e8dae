"""Writes ONNX graphs node by node."""

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

EXTERNAL_DATA_BYTES = 1 << 28
"""Models with at least so many bytes of weights keep them in a separate file; one ONNX file holds at most 2 GiB."""
MIN_EXTERNAL_WEIGHT_BYTES = 1 << 10
"""Smaller weights stay in the model's file: shapes and the like, whose values ONNX's checker reads."""
OPSET = 17

Inputs = Mapping[str, tuple[int, list[Any]]]
"""Name → element type and shape; a string in a shape names a free dimension."""
Outputs = Mapping[str, list[Any]]
"""Name → shape; all outputs are float32."""


class Graph:
    """Nodes and weights in the order they are added; equal calls serialise to equal bytes.

    Node names begin with the current layer (`at`), so that a profile is readable.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, np.ndarray] = {}
        self._layer = ""

    @contextmanager
    def at(self, layer: str) -> Iterator[None]:
        """Prefixes the names of nodes added inside the `with` block with the layer's name; blocks can be nested."""
        outer = self._layer
        self._layer = f"{outer}{layer}."
        try:
            yield
        finally:
            self._layer = outer

    def add(self, operator: str, *inputs: str | np.ndarray | np.generic, output: str = "", **attributes: Any) -> str:
        """Adds a node.

        Args:
            operator: ONNX's name of the operator.
            inputs: names of tensors; arrays and numbers become initializers.
            output: name of the output; the node's name if empty.
            attributes: of the node.

        Returns:
            The output's name.
        """
        name = f"{self._layer}{operator}_{len(self._nodes)}"
        names = [entry if isinstance(entry, str) else self.weight(entry) for entry in inputs]
        self._nodes.append(helper.make_node(operator, names, [output or name], name, **attributes))
        return output or name

    def convolve(
        self, x: str, weight: np.ndarray, bias: np.ndarray, stride: int = 1, pads: tuple[int, ...] = (0, 0, 0, 0)
    ) -> str:
        """Adds a convolution of x (N, C, H, W) with weight (D, C / groups, k, k) and bias (D,).

        If the weight has one input channel, it is a depthwise convolution.
        """
        groups = len(weight) if weight.shape[1] == 1 else 1
        return self.add("Conv", x, weight, bias, group=groups, strides=(stride, stride), pads=pads)

    def unit(self, x: str, output: str = "") -> str:
        """Scales the rows of x (N, D) to L2 norm 1; a zero row stays zero."""
        norm = self.add("Max", self.add("ReduceL2", x, axes=[1]), np.float32(1e-12))
        return self.add("Div", x, norm, output=output)

    def model(self, name: str, inputs: Inputs, outputs: Outputs) -> onnx.ModelProto:
        """Returns the graph as an ONNX model, checked by ONNX."""
        return ExportedNetwork(self, name, inputs, outputs).model()

    def weight(self, array: np.ndarray | np.generic, name: str = "") -> str:
        """Adds an initializer; returns its name, which several nodes can use."""
        name = name or f"w{len(self._weights)}"
        self._weights[name] = np.asarray(array)
        return name


class ExportedNetwork(NamedTuple):
    """A finished graph with its name, inputs and outputs."""

    graph: Graph
    name: str
    inputs: Inputs
    outputs: Outputs

    def model(self) -> onnx.ModelProto:
        """Returns the ONNX model with its weights, checked by ONNX."""
        tensors = [numpy_helper.from_array(array, key) for key, array in self.graph._weights.items()]
        model = self._message(tensors)
        onnx.checker.check_model(model, full_check=True)
        return model

    def save(self, path: Path) -> list[Path]:
        """Writes the model to `path`, and the weights of a large model to `path` + ".data", without copying them first.

        The model's file contains the SHA-256 of the weights' file (metadata `weights_sha256`), so that its own hash
        identifies both.

        Returns:
            The files written.
        """
        weights = self.graph._weights
        if sum(array.nbytes for array in weights.values()) < EXTERNAL_DATA_BYTES:
            with commit(path) as file:
                file.write(self.model().SerializeToString())
            return [path]
        data = path.with_name(f"{path.name}.data")
        tensors, digest, offset = [], hashlib.sha256(), 0
        with commit(data) as file:
            for key, array in weights.items():
                if array.nbytes < MIN_EXTERNAL_WEIGHT_BYTES:
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
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, producer_name="danqing", opset_imports=[opset], ir_version=8)


def _external(name: str, array: np.ndarray, location: str, offset: int) -> onnx.TensorProto:
    """Describes a weight whose bytes are in another file."""
    tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": array.nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
