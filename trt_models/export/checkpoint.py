"""Reads published checkpoints: folders with config.json and the weights, in Hugging Face's layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.trt_models.export.torch_file import float32_of_bfloat16, read_checkpoint

SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "u1",
    "BOOL": "?",
}
LFS_POINTER = b"version https://git-lfs"
WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
UNUSED_WEIGHTS = (
    "position_ids", "token_type_ids", "text_model.pooler.dense.weight", "text_model.pooler.dense.bias",
    "bert.pooler.dense.weight", "bert.pooler.dense.bias", "cls.seq_relationship.weight", "cls.seq_relationship.bias",
    "cls.predictions.bias",
)  # fmt: skip
"""Suffixes of tensors that a network may leave out: position numbers, a pooler that Chinese-CLIP does not run, and the
parts of BERT that a masked language model does not run, or that are there twice."""
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Ends of names in the first published BERTs, which transformers renames, too."""


class Checkpoint:
    """Configuration and weights of a folder. Weights are read one at a time, as float32, and their shapes are checked.

    Args:
        folder: the published folder.
        prefix: added to the name of every weight that is asked for.

    Attributes:
        config: content of config.json.
        files: the files that were opened, for the record.

    Raises:
        DanqingError: a file is missing or damaged; the message names it and the remedy.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder, self.prefix = folder, prefix
        if not folder.is_dir():
            raise DanqingError(f"{folder}: no such folder; give the one that holds config.json and the weights")
        self.config = self.json("config.json")
        self.files = [folder / "config.json"]
        self._tensors = self._open()
        self._read: set[str] = set()

    def json(self, name: str) -> dict[str, Any]:
        """Reads a JSON object of the folder.

        Raises:
            DanqingError: the file is missing or not a JSON object.
        """
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise DanqingError(f"{path}: missing; it is part of the published checkpoint") from None
        except ValueError as problem:
            raise DanqingError(f"{path}: not valid JSON: {problem}") from None
        if not isinstance(content, dict):
            raise DanqingError(f"{path}: a JSON {type(content).__name__}, not an object")
        return content

    def expect(self, *model_types: str) -> None:
        """Raises DanqingError unless `model_type` of config.json is one of these."""
        found = self.config.get("model_type")
        if found not in model_types:
            wanted = " or ".join(map(repr, model_types))
            raise DanqingError(f"{self.folder / 'config.json'}: model_type is {found!r}, the card is for {wanted}")

    def setting(self, section: Mapping[str, Any], name: str, default: Any = None) -> Any:
        """Returns a value of config.json.

        Args:
            section: `config` or a section of it.
            name: the key.
            default: the architecture's default, which published files omit; None if there is none.

        Raises:
            DanqingError: there is neither value nor default, or the value has another type.
        """
        value = default if section.get(name) is None else section[name]
        if value is None:
            raise DanqingError(f"{self.folder / 'config.json'}: has no {name!r}")
        kind = Mapping if name.endswith("_config") else type(default)
        if kind is int and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise DanqingError(f"{self.folder / 'config.json'}: {name} is {value!r}, not a whole number")
        if kind in (Mapping, str, float) and not isinstance(value, (int, float) if kind is float else kind):
            raise DanqingError(f"{self.folder / 'config.json'}: {name} is {value!r}")
        return value

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._tensors

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns a weight's shape, None if there is no such weight. Does not mark the weight as read."""
        name = self.prefix + name
        return self._tensors[name]().shape if name in self._tensors else None

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        """Reads a weight.

        Args:
            name: its name, without `prefix`.
            shape: its expected shape, -1 for any size; empty for any shape.

        Returns:
            A contiguous float32 array.

        Raises:
            DanqingError: there is no such weight, or it has another shape.
        """
        name = self.prefix + name
        if name not in self._tensors:
            raise DanqingError(f"{self.folder}: the weights have no {name!r}; {did_you_mean(name, self._tensors)}")
        self._read.add(name)
        tensor = np.ascontiguousarray(self._tensors[name](), np.float32)
        if shape and (
            tensor.ndim != len(shape) or any(w not in (-1, h) for w, h in zip(shape, tensor.shape, strict=True))
        ):
            raise DanqingError(
                f"{self.folder}: {name} has shape {tensor.shape}, and config.json asks for "
                f"{tuple('any' if side < 0 else side for side in shape)}"
            )
        return tensor

    def expect_all_read(self) -> None:
        """Checks that the network uses all weights of each part that it reads.

        Otherwise a config.json with too few layers would give a valid graph. A part is the first component of a
        weight's name, such as the vision part, which a text tower does not read.

        Raises:
            DanqingError: weights that the network does not use.
        """
        parts = {name.partition(".")[0] for name in self._read}
        left = [
            name
            for name in self._tensors
            if name not in self._read and name.partition(".")[0] in parts and not name.endswith(UNUSED_WEIGHTS)
        ]
        if left:
            raise DanqingError(
                f"{self.folder}: the network that config.json describes has no place for {len(left)} of the weights, "
                f"{left[0]!r} for one; get config.json and the weights from the same repository"
            )

    def _open(self) -> dict[str, Callable[[], np.ndarray]]:
        """Returns the tensors: name → function that reads it."""
        found = next((self.folder / name for name in WEIGHTS_FILES if (self.folder / name).exists()), None)
        if found is None:
            raise DanqingError(f"{self.folder}: no weights here; looked for {', '.join(WEIGHTS_FILES)}")
        with found.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise DanqingError(f"{found}: a pointer to the file, not the file; fetch it with `git lfs pull`")
        if found.suffix == ".json":
            shards = sorted(set(self.json(found.name).get("weight_map", {}).values()))
            if not shards:
                raise DanqingError(f"{found}: names no files in its weight_map")
            self.files.append(found)
        else:
            shards = [found.name]
        lazy: dict[str, Callable[[], np.ndarray]] = {}
        for shard in shards:
            if Path(shard).name != shard:
                raise DanqingError(f"{found}: names {shard!r}, which is not a file beside it")
            self.files.append(self.folder / shard)
            path = self.folder / shard
            lazy |= dict(_torch(path) if path.suffix == ".bin" else _safetensors(path))
        return {_renamed(name): read for name, read in lazy.items()}


def _renamed(name: str) -> str:
    old = next((old for old in OLD_NAMES if name.endswith(old)), None)
    return name.removesuffix(old) + OLD_NAMES[old] if old else name


def _torch(path: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    for name, tensor in read_checkpoint(path).items():
        yield name, lambda tensor=tensor: tensor  # type: ignore[misc]


def _safetensors(path: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yields the tensors of a file: name, and function that reads it.

    Format (github.com/huggingface/safetensors, "Format"): int64 length of the header, JSON header (name → dtype, shape,
    data_offsets), data.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, 100 << 20):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        start = 8 + length
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            kind, shape = np.dtype(SAFETENSORS_TYPES[entry["dtype"]]), tuple(map(int, entry["shape"]))
            first, last = map(int, entry["data_offsets"])
            if not 0 <= first <= last <= size - start or last - first != kind.itemsize * int(
                np.prod(shape, dtype=np.int64)
            ):
                raise ValueError(f"{name} of shape {shape} cannot lie at {first} … {last}")
            yield name, _reader(path, kind, shape, start + first, entry["dtype"] == "BF16")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        raise DanqingError(f"{path}: not a safetensors file: {problem}") from None


def _reader(
    path: Path, kind: np.dtype[Any], shape: tuple[int, ...], offset: int, halves: bool
) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        if 0 in shape:
            return np.empty(shape, kind)
        tensor = np.array(np.memmap(path, kind, "r", offset, shape))
        return float32_of_bfloat16(tensor) if halves else tensor

    return read
