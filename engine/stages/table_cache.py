"""Tables of the text kernels in the cache folder: made once from installed packages, then loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import numpy as np

from danqing.engine.core.files import building, commit, write_json
from danqing.trt_models.package_files import cache_folder


def load_tables(
    name: str, sources: Iterable[ModuleType], contents: Iterable[str], make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Loads tables from the cache folder; makes and stores them if they are not there.

    Args:
        name: of the tables.
        sources: the modules that define what the tables hold, the values' bits included.
        contents: versions or hashes of what the tables are made from.
        make: makes them.

    Returns:
        Name → array.
    """
    digest = hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in sources))
    for content in contents:
        digest.update(content.encode())
    name = f"{name}-{digest.hexdigest()[:12]}"
    folder = cache_folder() / "tables" / name
    index = folder / "index.json"
    if not index.exists():
        with building(folder, f"the table {name}"):
            if not index.exists():  # another process can have made it
                tables = make()
                for key, table in tables.items():
                    with commit(folder / f"{key}.npy") as file:
                        np.save(file, table)
                write_json(index, sorted(tables))
    return {key: np.load(folder / f"{key}.npy") for key in json.loads(index.read_text())}
