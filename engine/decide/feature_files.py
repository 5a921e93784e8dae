"""The files of the features of shards, mapped as arrays."""

from __future__ import annotations

import io
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from danqing.engine.core.files import naming_full_disk
from danqing.engine.core.storage import RemotePath, fetch_all, folder_for_temporary_files, is_local_or_cached
from danqing.engine.run.tables import SCORE_AGAIN, reading

MAX_MAPPED_FILES = 1 << 14
"""Files of a run that are mapped one by one. Linux allows a process 65,530 maps (vm.max_map_count), which two runs, the
threads and the libraries share."""
HEADER_BYTES = 128
"""Size of the header that `numpy.save` writes before features."""
GAP_BYTES = 1 << 16
"""Largest gap between two rows that one request reads."""


def read_feature_rows(path: Path, rows: np.ndarray) -> np.ndarray:
    """Reads rows of a shard's features. Of a remote file without a copy in the cache, only parts are downloaded.

    Args:
        path: of the shard's features.
        rows: int (rows,), ascending, at least one.

    Returns:
        float16 (rows, dimension).

    Raises:
        DanqingError: the file is missing or damaged, or the storage does not answer.
    """
    if is_local_or_cached(path):
        return map_features(path)[rows]
    assert isinstance(path, RemotePath)
    with reading(path, SCORE_AGAIN):
        file = io.BytesIO(path.bucket.read_ranges(path.key, [(0, HEADER_BYTES)])[0])
        (_, dimension), dtype, offset = _header(file)
        width = dimension * dtype.itemsize
        groups = np.split(rows, np.flatnonzero(np.diff(rows) * width > GAP_BYTES) + 1)
        ranges = [(offset + int(group[0]) * width, int(group[-1] - group[0] + 1) * width) for group in groups]
        parts = path.bucket.read_ranges(path.key, ranges)
        found = [np.frombuffer(part, dtype).reshape(-1, dimension) for part in parts]
        return np.concatenate([part[group - group[0]] for part, group in zip(found, groups, strict=True)])


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Reads the header of a .npy file: shape, dtype and the offset of the values."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype, file.tell()


def map_features(path: Path) -> np.ndarray:
    """Maps a shard's features, float16 (rows, dimension), read-only.

    The file is closed, since a run may have more shards than a process may have open files; `numpy.load` keeps it open.

    Raises:
        DanqingError: the file is missing or damaged.
    """
    with reading(path, SCORE_AGAIN):
        with path.open("rb") as file:
            shape, dtype, offset = _header(file)
        if 0 in shape:
            return np.empty(shape, dtype)
        with pa.memory_map(os.fspath(path)) as mapped:
            return np.frombuffer(mapped.read_buffer(), dtype, offset=offset).reshape(shape)


def map_run(paths: Sequence[Path], folder: Path) -> list[np.ndarray]:
    """Maps the features of all shards of a run: the first `MAX_MAPPED_FILES` files, and one copy of all others.

    Args:
        paths: of the shards' features.
        folder: the run's. The copy is an unnamed file in it, or in the system's folder for temporary files (`TMPDIR`)
            if the run's cannot be written.

    Returns:
        One array per shard, as from `map_features`.

    Raises:
        DanqingError: a file is missing or damaged.
    """
    fetch_all(paths)
    blocks = [map_features(path) for path in paths[:MAX_MAPPED_FILES]]
    if len(paths) == len(blocks):
        return blocks
    shapes = []
    folder = folder_for_temporary_files(folder)
    place = folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())
    with naming_full_disk(place), tempfile.TemporaryFile(dir=place) as copy:
        for path in paths[MAX_MAPPED_FILES:]:
            block = map_features(path)
            copy.write(block.data)
            shapes.append(block.shape)
        copy.flush()
        mapped = mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ) if copy.tell() else b""
    values, start = np.frombuffer(mapped, np.float16), 0
    for rows, dimension in shapes:
        blocks.append(values[start : start + rows * dimension].reshape(rows, dimension))
        start += rows * dimension
    return blocks
