"""Reads checkpoints in PyTorch's file format before 1.6, without PyTorch and without trusting the file.

Such a file is a row of pickles (magic number, format version, machine, the object itself, the keys of its
storages), then each storage as an int64 element count and its little-endian elements; see `_legacy_save` in
torch/serialization.py. A pickle is a program. Here it can name the handful of things in `_GLOBALS` and nothing
else, so the worst a hostile file achieves is an error.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from engine.errors import DanqingError

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001


@dataclass(frozen=True)
class _Storage:
    """A flat run of elements that follows the pickles under this key."""

    key: str
    dtype: np.dtype[Any]
    size: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    """Stands in for torch._utils._rebuild_tensor_v2; what follows the strides concerns gradients only."""
    return _Tensor(storage, offset, shape, strides)


_ELEMENTS = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "Long": "<i8", "Int": "<i4"}
_GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
} | {f"torch.{name}Storage": dtype for name, dtype in _ELEMENTS.items()}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _GLOBALS:
            raise DanqingError(
                f"{self._path}: asks for {module}.{name}, which weights do not need; refusing to load it"
            )
        return _GLOBALS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, size, view = pid
        if kind != "storage" or dtype not in _ELEMENTS.values() or view is not None:
            raise pickle.UnpicklingError(f"unknown storage {pid!r}")
        return _Storage(key, np.dtype(dtype), size)


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a saved state dict: name → contiguous array of the tensor's own shape and type.

    Raises:
        DanqingError: the file is damaged, in another format, or its pickle names anything but tensors.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            return _read(file, path)
        except (pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError) as problem:
            raise DanqingError(f"{path}: not a legacy PyTorch state dict: {problem}") from None


def _read(file: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    def load() -> Any:
        return _Unpickler(file, path).load()

    if (magic := load()) != _MAGIC or (version := load()) != _VERSION:
        raise ValueError(f"magic number {magic!r}" if magic != _MAGIC else f"format version {version!r}")
    load()  # the machine that wrote it; the elements are little-endian wherever that was
    tensors: dict[str, _Tensor] = load()
    if not isinstance(tensors, dict) or not all(isinstance(t, _Tensor) for t in tensors.values()):
        raise ValueError("holds more than a mapping of tensors")
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    elements: dict[str, bytes] = {}
    for key in load():
        size = int.from_bytes(file.read(8), "little")
        if size != storages[key].size:
            raise ValueError(f"storage {key} has {size} elements instead of {storages[key].size}")
        elements[key] = file.read(size * storages[key].dtype.itemsize)
    return {name: _view(tensor, elements[tensor.storage.key]) for name, tensor in tensors.items()}


def _view(tensor: _Tensor, elements: bytes) -> np.ndarray:
    """Copies the view out of its storage; numpy refuses one that reaches beyond it."""
    dtype = tensor.storage.dtype
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.ndarray(tensor.shape, dtype, elements, tensor.offset * dtype.itemsize, strides).copy(order="C")
