"""A model that runs: arrays in, arrays out, any number of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnxruntime

from trt_models.card import Card

if TYPE_CHECKING:
    from engine.device import Device

BATCH = 8
"""Rows a model sees at once. Always exactly so many: a row's result must not depend on its company."""


class Session(Protocol):
    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Named inputs, rows first → named outputs, rows first."""
        ...


class OnnxSession:
    """ONNX Runtime on the device."""

    def __init__(self, path: Path, device: Device) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = device.threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        rows = len(next(iter(inputs.values())))
        parts = [
            self._session.run(self._outputs, {name: _full(a[start : start + BATCH]) for name, a in inputs.items()})
            for start in range(0, rows, BATCH)
        ]
        return {
            name: np.concatenate([part[position] for part in parts])[:rows]
            for position, name in enumerate(self._outputs)
        }


def _full(array: np.ndarray) -> np.ndarray:
    """The last batch, filled up with its first row (kernels may sum in another order for other shapes)."""
    missing = BATCH - len(array)
    return np.concatenate([array, np.repeat(array[:1], missing, axis=0)]) if missing else array


def open_session(card: Card, path: Path, device: Device) -> Session:
    """The session that runs the card's model on the device."""
    return OnnxSession(path, device)
