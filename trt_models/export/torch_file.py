"""Reads PyTorch's files of weights, of either format, without PyTorch and without running code from the file.

Before PyTorch 1.6 a file was a sequence of pickles (magic number, format version, machine, the object itself, the keys
of its storages), then each storage as an int64 element count and its little-endian elements; see `_legacy_save` in
torch/serialization.py. Since then it is a ZIP archive: data.pkl, and data/KEY with the elements of each storage.
A pickle is a program; here it can use only the names in `_GLOBALS`, so a hostile file can cause nothing but an error.
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
_DAMAGE_ERRORS = (
    pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError, OSError, zipfile.BadZipFile,
)  # fmt: skip
"""Exceptions that the readers raise on a damaged file."""
_ZIP_HEADER_BYTES = 30
"""Size of the header of a ZIP member, without its name and extra field."""
BFLOAT16 = "bfloat16"
"""Name of a type that NumPy lacks: the upper 16 bits of float32."""


@dataclass(frozen=True)
class _Storage:
    """A flat array of elements in the file.

    Attributes:
        key: names the storage in the file.
        kind: a NumPy type, or `BFLOAT16`.
        size: number of elements.
    """

    key: str
    kind: str
    size: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("<u2" if self.kind == BFLOAT16 else self.kind)


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage. Offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    """Replaces torch._utils._rebuild_tensor_v2; the arguments after the strides concern gradients only."""
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    """Replaces torch._utils._rebuild_parameter."""
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
    """An unpickler that knows no names but those in `_GLOBALS`, which is what makes it safe."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _GLOBALS:
            raise DanqingError(
                f"{self._path}: its pickle uses {module}.{name}, which weights do not need; refusing to load it"
            )
        return _GLOBALS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _device, size, *view = pid
        if tag != "storage" or kind not in _ELEMENTS.values() or view not in ([], [None]):
            raise pickle.UnpicklingError(f"unknown storage {pid!r}")
        return _Storage(str(key), kind, size)


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a saved state dict.

    Args:
        path: a file that `torch.save` wrote.

    Returns:
        Name → contiguous array of the tensor's shape and type; bfloat16 becomes float32.

    Raises:
        DanqingError: the file is damaged or in another format, or its pickle uses names other than tensors'.
    """
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path)
        with path.open("rb") as file:
            return _read(file, path)
    except _DAMAGE_ERRORS as problem:
        raise DanqingError(f"{path}: not a PyTorch state dict: {problem}") from None


def _read(file: IO[bytes], path: Path) -> dict[str, np.ndarray]:
    def load() -> Any:
        return _Unpickler(file, path).load()

    if (magic := load()) != _MAGIC or (version := load()) != _VERSION:
        raise ValueError(f"magic number {magic!r}" if magic != _MAGIC else f"format version {version!r}")
    load()  # properties of the writing machine; elements are little-endian on any
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
    """Returns a view of a member's bytes in the mapped file, unread. PyTorch does not compress members."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    head = whole[member.header_offset : member.header_offset + _ZIP_HEADER_BYTES].tobytes()
    name_bytes, extra_bytes = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
    start = member.header_offset + _ZIP_HEADER_BYTES + name_bytes + extra_bytes
    if not head.startswith(b"PK\3\4") or start + member.file_size > len(whole):
        raise ValueError(f"{member.filename} is not at the place that the archive states")
    return whole[start : start + member.file_size]


def _tensors(content: Any) -> dict[str, _Tensor]:
    tensors = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not all(isinstance(tensor, _Tensor) for tensor in tensors.values()):
        raise ValueError("holds something other than a mapping of tensors")
    return tensors


def _views(tensors: dict[str, _Tensor], elements: Callable[[str], Any]) -> dict[str, np.ndarray]:
    """Makes an array of each tensor, copied only if it is not contiguous. NumPy refuses views beyond their storage."""
    out = {}
    for name, tensor in tensors.items():
        dtype = tensor.storage.dtype
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        if (
            tensor.offset < 0 or math.prod(tensor.shape) > tensor.storage.size
        ):  # with strides of 0, a small file could describe a huge array
            raise ValueError(f"{name} of shape {tensor.shape} in a storage of {tensor.storage.size}")
        content = elements(tensor.storage.key)
        view: np.ndarray = np.ndarray(tensor.shape, dtype, content, tensor.offset * dtype.itemsize, strides)
        out[name] = (
            float32_of_bfloat16(view)
            if tensor.storage.kind == BFLOAT16
            else np.ascontiguousarray(view).reshape(view.shape)
        )
    return out


def float32_of_bfloat16(halves: np.ndarray) -> np.ndarray:
    """Converts bfloat16, given as uint16, to float32 of the same shape."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
