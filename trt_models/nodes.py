"""Functions on ONNX nodes, shared by the modules that rewrite graphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx
from onnx import helper


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Returns a node's attributes: name → value."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def live_nodes(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Returns the nodes that the outputs depend on.

    Args:
        nodes: all nodes, in order of execution.
        outputs: names of tensors.

    Returns:
        A part of the nodes, in the same order.
    """
    needed = set(outputs)
    live = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            live.append(node)
    return live[::-1]
