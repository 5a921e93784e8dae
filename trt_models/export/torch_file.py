"""Reads PyTorch's files of weights, of either format, without PyTorch and without trusting the file.

Before 1.6 a file was a row of pickles (magic number, format version, machine, the object itself, the keys of its
storages), then each storage as an int64 element count and its little-endian elements; see `_legacy_save` in
torch/serialization.py. Since then it is a ZIP archive: data.pkl, and data/KEY with the elements of each storage.
A pickle is a program. Here it can name the handful of things in `_GLOBALS` and nothing else, so the worst a hostile
file achieves is an error.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from danqing.engine.core.errors import DanqingError

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
BROKEN = (
    pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError, OSError, zipfile.BadZipFile,
)  # fmt: skip
"""What a damaged file makes the readers raise."""
_HEAD = 30
"""Bytes of the header before a member of a ZIP archive, without its name and extra field."""
BFLOAT16 = "bfloat16"
"""NumPy has no such type: the upper halves of float32 numbers."""


@dataclass(frozen=True)
class _Storage:
    """A flat run of elements, kept under this key."""

    key: str
    kind: str
    size: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("<u2" if self.kind == BFLOAT16 else self.kind)


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


def _parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    """Stands in for torch._utils._rebuild_parameter."""
    return tensor


_ELEMENTS = {
    "Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": BFLOAT16, "Long": "<i8", "Int": "<i4", "Byte": "<u1",
    "Bool": "<u1",
}  # fmt: skip
_GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
} | {f"torch.{name}Storage": kind for name, kind in _ELEMENTS.items()}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _GLOBALS:
            raise DanqingError(
                f"{self._path}: asks for {module}.{name}, which weights do not need; refusing to load it"
            )
        return _GLOBALS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _device, size, *view = pid
        if tag != "storage" or kind not in _ELEMENTS.values() or view not in ([], [None]):
            raise pickle.UnpicklingError(f"unknown storage {pid!r}")
        return _Storage(str(key), kind, size)


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a saved state dict: name → contiguous array of the tensor's own shape and type (bfloat16 becomes
    float32).

    Raises:
        DanqingError: the file is damaged, in another format, or its pickle names anything but tensors.
    """
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path)
        with path.open("rb") as file:
            return _read(file, path)
    except BROKEN as problem:
        raise DanqingError(f"{path}: not a PyTorch state dict: {problem}") from None


def _read(file: IO[bytes], path: Path) -> dict[str, np.ndarray]:
    def load() -> Any:
        return _Unpickler(file, path).load()

    if (magic := load()) != _MAGIC or (version := load()) != _VERSION:
        raise ValueError(f"magic number {magic!r}" if magic != _MAGIC else f"format version {version!r}")
    load()  # the machine that wrote it; the elements are little-endian wherever that was
    tensors = _tensors(load())
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    elements: dict[str, bytes] = {}
    for key in load():
        size = int.from_bytes(file.read(8), "little")
        if size != storages[key].size:
            raise ValueError(f"storage {key} has {size} elements instead of {storages[key].size}")
        elements[key] = file.read(size * storages[key].dtype.itemsize)
    return _views(tensors, elements.__getitem__)


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = index.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("big-endian elements")
        with archive.open(index) as file:
            tensors = _tensors(_Unpickler(file, path).load())
        whole = np.memmap(path, np.uint8, "r")
        return _views(tensors, lambda key: _stored(whole, archive.getinfo(f"{root}data/{key}")))


def _stored(whole: np.ndarray, member: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a member where they lie in the file, for PyTorch never compresses: nothing is read yet."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    head = whole[member.header_offset : member.header_offset + _HEAD].tobytes()
    start = member.header_offset + _HEAD + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    if not head.startswith(b"PK\3\4") or start + member.file_size > len(whole):
        raise ValueError(f"{member.filename} is not where the archive says")
    return whole[start : start + member.file_size]


def _tensors(content: Any) -> dict[str, _Tensor]:
    tensors = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not all(isinstance(tensor, _Tensor) for tensor in tensors.values()):
        raise ValueError("holds more than a mapping of tensors")
    return tensors


def _views(tensors: dict[str, _Tensor], elements: Callable[[str], Any]) -> dict[str, np.ndarray]:
    """Every view of its storage, copied only if it is not contiguous; numpy refuses one that reaches beyond it."""
    out = {}
    for name, tensor in tensors.items():
        dtype = tensor.storage.dtype
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        if tensor.offset < 0 or math.prod(tensor.shape) > tensor.storage.size:  # strides of 0 make much of little
            raise ValueError(f"{name} of shape {tensor.shape} in a storage of {tensor.storage.size}")
        content = elements(tensor.storage.key)
        view: np.ndarray = np.ndarray(tensor.shape, dtype, content, tensor.offset * dtype.itemsize, strides)
        out[name] = (
            upper_halves(view) if tensor.storage.kind == BFLOAT16 else np.ascontiguousarray(view).reshape(view.shape)
        )
    return out


def upper_halves(halves: np.ndarray) -> np.ndarray:
    """bfloat16, given as uint16, to float32."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
