"""Activation functions as trees of ONNX nodes, by which the fusions of ONNX Runtime and of torch find them."""

from __future__ import annotations

import math
from typing import Any

Pattern = str | float | tuple[Any, ...]
"""A tensor: a name to bind it to, the value of a scalar weight, or the node that computes it, (operator, *operands)."""

SILU: Pattern = ("Mul", "x", ("Sigmoid", "x"))
GELU: Pattern = ("Mul", ("Mul", "x", ("Add", ("Erf", ("Div", "x", math.sqrt(2))), 1.0)), 0.5)
_CUBE: Pattern = ("Mul", ("Mul", ("Mul", "x", "x"), "x"), 0.044715)
_TANH: Pattern = ("Tanh", ("Mul", ("Add", "x", _CUBE), math.sqrt(2 / math.pi)))
TANH_GELU: Pattern = ("Mul", ("Mul", "x", ("Add", _TANH, 1.0)), 0.5)
