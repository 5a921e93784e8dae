"""The files of the features of shards, mapped as arrays."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from danqing.engine.core.files import naming_full_disk
from danqing.engine.core.storage import fetch_all, folder_for_temporary_files
from danqing.engine.run.tables import SCORE_AGAIN, reading

MAX_MAPPED_FILES = 1 << 14
"""Files of a run that are mapped one by one. Linux allows a process 65,530 maps (vm.max_map_count), which two runs, the
threads and the libraries share."""


def map_features(path: Path) -> np.ndarray:
    """Maps a shard's features, float16 (rows, dimension), read-only.

    The file is closed, since a run may have more shards than a process may have open files; `numpy.load` keeps it open.

    Raises:
        DanqingError: the file is missing or damaged.
    """
    with reading(path, SCORE_AGAIN):
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
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
