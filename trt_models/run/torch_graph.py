"""Runs an ONNX graph as a list of torch calls.

Shapes, axes and bounds, and all values computed from them, are NumPy arrays in host memory. So no call waits for the
device to compute a shape, and CUDA can capture the whole list as one graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch.nn import functional

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.nodes import attributes_of
from danqing.trt_models.run.torch_fusion import TYPES, Weights, fuse_nodes

Tensor = torch.Tensor


class Call(NamedTuple):
    """One torch call.

    Attributes:
        function: takes the values of `inputs` and returns the value of `output`.
        inputs: names of values, "" for an input that is left out.
        output: name of a value.
        frees: names of the values that no later call reads.
    """

    function: Callable[..., Any]
    inputs: tuple[str, ...]
    output: str
    frees: tuple[str, ...] = ()


class TorchGraph:
    """An ONNX model that torch runs. Tensors have the types that the graph gives them.

    Args:
        model: in float32, or in 16 bits as `halved` returns it; with its weights.
        device: holds the weights, the inputs and the outputs.

    Raises:
        DanqingError: an operator or an attribute is not supported; the message names the node.
    """

    def __init__(self, model: onnx.ModelProto, device: torch.device) -> None:
        nodes, weights = fuse_nodes(model.graph)
        self._device = device
        self._constants: dict[str, Any] = {"": None}  # ONNX names an omitted input ""
        self._on_host: set[str] = set()
        self.outputs = [output.name for output in model.graph.output]
        self._calls = _with_frees([self._translated(node, weights) for node in nodes], {*self.outputs})

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Runs the model.

        Args:
            inputs: by name, (rows, …) each, on the device.

        Returns:
            The outputs by name, (rows, …) each, on the device.
        """
        values = self._constants | inputs
        for call in self._calls:
            values[call.output] = call.function(*(values[name] for name in call.inputs))
            for name in call.frees:
                del values[name]
        return {name: values[name] for name in self.outputs}

    def _translated(self, node: onnx.NodeProto, weights: Weights) -> Call:
        function = FUNCTIONS.get(node.op_type) or FUNCTIONS_WITH_ATTRIBUTES.get(node.op_type)
        if function is None:
            raise DanqingError(f"torch: node {node.name}: the operator {node.op_type} is not supported")
        attributes = attributes_of(node)
        known = inspect.signature(function).parameters if node.op_type in FUNCTIONS_WITH_ATTRIBUTES else {}
        for name in attributes:
            if name not in known:
                raise DanqingError(f"torch: node {node.name}: the attribute {name} of {node.op_type} is not supported")
        of_shapes = not self._on_host.isdisjoint(node.input[: SHAPE_INPUT_COUNTS.get(node.op_type, 0)])
        if of_shapes or node.op_type == "Shape":
            self._on_host.update(node.output)
        inputs = tuple(
            self._input(node, position, of_shapes or position in HOST_INPUTS.get(node.op_type, ()), weights)
            for position in range(len(node.input))
        )
        return Call(partial(function, **attributes) if attributes else function, inputs, node.output[0])

    def _input(self, node: onnx.NodeProto, position: int, on_host: bool, weights: Weights) -> str:
        """Returns the name of the value that the call reads. Copies a weight to the device, or keeps it on the host."""
        name = node.input[position]
        if name in weights:
            if on_host or (node.op_type == "Gather" and position == 1 and not weights.rank(name)):
                self._constants[f"{name} on the host"] = _on_host(weights[name])
                return f"{name} on the host"
            if name not in self._constants:
                self._constants[name] = weights[name].to(self._device)
            return name
        if not name:
            return name
        if on_host != (name in self._on_host):
            where = "depends on the values of an input" if on_host else "takes part in a computation"
            raise DanqingError(f"torch: node {node.name}: the shape {name} {where}, which is not supported")
        return name


def _on_host(weight: Tensor) -> np.ndarray:
    """Converts a weight to NumPy. The bounds of Clip and Pad become float32, since NumPy has no bf16."""
    return (weight.float() if weight.is_floating_point() else weight).numpy()


def _with_frees(calls: Sequence[Call], kept: set[str]) -> list[Call]:
    """Fills `frees`: the names of the values that no later call reads, except `kept`."""
    made = {call.output for call in calls} - kept
    done = []
    for call in reversed(calls):
        last = made.intersection(call.inputs)
        made -= last
        done.append(call._replace(frees=tuple(last)))
    return done[::-1]


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q (N, H, T, d), k (N, H, d, S), v (N, H, S, d) → (N, H, T, d). q's weights include the scale 1 / √d."""
    keys = k.transpose(-1, -2)
    q = q.expand(*np.broadcast_shapes(q.shape[:-2], k.shape[:-2]), *q.shape[-2:])
    mask = None if mask is None else mask.to(q.dtype)
    return functional.scaled_dot_product_attention(q, keys, v, attn_mask=mask, scale=1.0)


def _layer_norm(
    x: Tensor, gamma: Tensor, beta: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5
) -> Tensor:
    return functional.layer_norm(x, x.shape[axis:], gamma, beta, epsilon)


def _slice(
    x: Any, starts: np.ndarray, ends: np.ndarray, axes: np.ndarray | None = None, steps: np.ndarray | None = None
) -> Any:
    index = [slice(None)] * x.ndim
    for position, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        axis = position if axes is None else int(axes[position])
        index[axis] = slice(start, end, 1 if steps is None else int(steps[position]))
    return x[tuple(index)]


def _gather(x: Any, places: Any, *, axis: int = 0) -> Any:
    if isinstance(x, np.ndarray):
        return x.take(places, axis)
    if isinstance(places, np.ndarray):
        return x.select(axis, int(places))
    return x[(*[slice(None)] * (axis % x.ndim), places)]


def _unsqueeze(x: Tensor, axes: np.ndarray) -> Tensor:
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _clip(x: Tensor, low: np.ndarray | None = None, high: np.ndarray | None = None) -> Tensor:
    return x.clamp(None if low is None else low.item(), None if high is None else high.item())


def _reduce(function: Callable[..., Tensor], x: Tensor, axes: Sequence[int], keepdims: int) -> Tensor:
    return function(x, dim=tuple(axes), keepdim=bool(keepdims))


def _pad(x: Tensor, pads: np.ndarray, value: np.ndarray | None = None) -> Tensor:
    return functional.pad(x, _torch_pads(pads.tolist()), value=0 if value is None else value.item())


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0), group: int = 1,
) -> Tensor:  # fmt: skip
    before, after = list(pads[:2]), list(pads[2:])
    if before != after:
        x, before = functional.pad(x, _torch_pads(pads)), [0, 0]
    return functional.conv2d(x, weight, bias, list(strides), before, groups=group)


def _max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], strides: Sequence[int] = (1, 1), pads: Sequence[int] = (0, 0, 0, 0)
) -> Tensor:
    if any(pads):
        x = functional.pad(x, _torch_pads(pads), value=float("-inf"))
    return functional.max_pool2d(x, list(kernel_shape), list(strides))


def _torch_pads(pads: Sequence[int]) -> list[int]:
    """Reorders paddings: ONNX lists the starts of all axes, then the ends; torch lists pairs, the last axis first."""
    axes = len(pads) // 2
    return [pad for axis in reversed(range(axes)) for pad in (pads[axis], pads[axes + axis])]


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Mod": torch.remainder, "Neg": torch.neg,
    "Sqrt": torch.sqrt, "Erf": torch.erf, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Relu": torch.relu,
    "Equal": torch.eq, "GreaterOrEqual": torch.ge, "MatMul": torch.matmul, "Clip": _clip, "Slice": _slice,
    "Unsqueeze": _unsqueeze, "Attention": _attention, "Linear": functional.linear, "Silu": functional.silu,
    "Div": lambda x, y: torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc"),
    "Max": lambda *operands: reduce(torch.maximum, operands),
    "Shape": lambda x: np.array(x.shape),
    "Reshape": lambda x, shape: x.reshape([side or x.shape[axis] for axis, side in enumerate(shape.tolist())]),
    "Expand": lambda x, shape: x.expand(np.broadcast_shapes(x.shape, shape.tolist())),
    "Squeeze": lambda x, axes: x.squeeze(tuple(axes.tolist())),
    "Pad": _pad,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    # Two linear layers, whose weights include the scales of x sigmoid(1.702 x).
    "QuickGeluMlp": lambda x, w1, b1, w2, b2: functional.linear(functional.silu(functional.linear(x, w1, b1)), w2, b2),
}  # fmt: skip
"""Operators without attributes: those that `trt_models.export` writes, and those of `fuse_nodes`."""
FUNCTIONS_WITH_ATTRIBUTES: Mapping[str, Callable[..., Any]] = {
    "Cast": lambda x, *, to: x.to(TYPES[to]),
    "Concat": lambda *parts, axis: (np.concatenate if isinstance(parts[0], np.ndarray) else torch.cat)(parts, axis),
    "Conv": _conv,
    "Flatten": lambda x, *, axis=1: x.reshape(int(np.prod(x.shape[:axis])), -1),
    "Gather": _gather,
    "GatherElements": lambda x, places, *, axis=0: torch.gather(x, axis, places.long()),
    "Gelu": lambda x, *, approximate=b"none": functional.gelu(x, approximate=approximate.decode()),
    "Gemm": lambda a, b, c=None, *, transB=0: functional.linear(a, b if transB else b.t(), c),  # noqa: N803 - ONNX's name
    "LayerNormalization": _layer_norm,
    "LogSoftmax": lambda x, *, axis=-1: x.log_softmax(axis),
    "MaxPool": _max_pool,
    "ReduceL2": lambda x, *, axes, keepdims=1: _reduce(torch.linalg.vector_norm, x, axes, keepdims),
    "ReduceMax": lambda x, *, axes, keepdims=1: _reduce(torch.amax, x, axes, keepdims),
    "ReduceMean": lambda x, *, axes, keepdims=1: _reduce(torch.mean, x, axes, keepdims),
    "ReduceSum": lambda x, axes, *, keepdims=1: _reduce(torch.sum, x, axes.tolist(), keepdims),
    "Softmax": lambda x, *, axis=-1: x.softmax(axis),
    "Transpose": lambda x, *, perm: x.permute(*perm),
}
"""Operators whose attributes are keyword arguments of their functions."""
HOST_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "ReduceSum": (1,), "Pad": (1, 2),
    "Clip": (1, 2), "Slice": (1, 2, 3, 4),
}  # fmt: skip
"""Operator → positions of the inputs that are read on the host."""
SHAPE_INPUT_COUNTS: Mapping[str, int | None] = {"Slice": 1, "Gather": 1, "Concat": None}
"""Operator that can compute a shape from shapes → number of its inputs that can be shapes (None: all)."""
