"""Compiled kernels on disk, where processes that start at once do not disturb each other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba

from engine.errors import DanqingError
from engine.files import cache_path


def kept(jit: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Makes a decorator that compiles a function by Numba and keeps the compiled code in `KernelFiles`.

    Args:
        jit: `numba.njit` or `numba.cuda.jit`. options: its own.

    Raises:
        DanqingError: compiled code can be written to no folder (when the decorator is used).
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            compiled = jit(cache=True, **options)(function)
        except RuntimeError as problem:
            if "cannot cache" not in str(problem):
                raise
            raise DanqingError(
                f"{cache_path()}: cannot be written; set DANQING_CACHE to a folder that can ({problem})"
            ) from None
        found: Any = getattr(compiled, "_cache", None)
        if hasattr(found, "_cache_file"):  # the CUDA simulator compiles nothing and has none
            found._cache_file = KernelFiles(found._cache_file)
        return compiled

    return decorate


class KernelFiles:
    """One file for every compiled kernel, named by what it was compiled from and for.

    Takes the place of Numba's `IndexDataCacheFile`, which numbers the files of a function and notes in an index which
    number is which: two processes that save at once can give two kernels the same number, and a process that loads
    between a save's two writes takes a kernel of older sources for the new one. It also compares only the time of the
    kernel's own file, though a kernel calls functions of the package's other files.

    Args:
        files: the object it takes the place of; it reads and (whole or not at all) writes single files.
    """

    def __init__(self, files: Any) -> None:
        self.files = files

    def load(self, key: Any) -> Any:
        """The compiled kernel; None if there is none, or none that can be read."""
        try:
            return self.files._load_data(self._name(key))
        except Exception:  # unpickling a damaged file raises many kinds; compiling anew replaces it
            return None

    def save(self, key: Any, kernel: Any) -> None:
        """Writes the kernel's file. Where that fails (a full disk), every process compiles for itself."""
        with suppress(OSError):
            self.files._save_data(self._name(key), kernel)

    def flush(self) -> None:
        """Removes the function's files; Numba calls it when a function is to be compiled anew."""
        for path in Path(self.files._cache_path).glob(f"{self._stem}.*.nbc"):
            path.unlink(missing_ok=True)

    @property
    def _stem(self) -> str:
        stem: str = self.files._index_name.removesuffix(".nbi")
        return stem

    def _name(self, key: Any) -> str:
        # Numba's key: argument types, target (a GPU's compute capability), bytecode. Its text is the same in every
        # process, its pickle is not.
        digest = hashlib.sha256(f"{numba.__version__} {sources()} {key!r}".encode()).hexdigest()
        return f"{self._stem}.{digest[:20]}.nbc"


@cache
def sources() -> str:
    """Digest of this package's sources."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()
