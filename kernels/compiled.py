"""A cache of compiled kernels on disk that several processes can use at the same time."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler_lock import global_compiler_lock

from danqing.engine.core.cache import cache_path
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import LOCK
from danqing.engine.core.lock import locked
from danqing.engine.core.logs import say


def cached(jit: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Makes a decorator that compiles a function with Numba and caches the compiled code in `KernelFiles`.

    Args:
        jit: `numba.njit` or `numba.cuda.jit`.
        options: arguments of `jit`.

    Returns:
        The decorator. It raises DanqingError if the cache folder cannot be written to.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            compiled = jit(cache=True, **options)(function)
        except RuntimeError as problem:
            if "cannot cache" not in str(problem):
                raise
            raise DanqingError(
                f"{cache_path()}: cannot be written to; set DANQING_CACHE to a writable folder ({problem})"
            ) from None
        found: Any = getattr(compiled, "_cache", None)
        if hasattr(found, "_cache_file"):  # the CUDA simulator compiles nothing and has no cache
            found._cache_file = files = KernelFiles(found._cache_file)
            compiled.compile = files.compiling_once(compiled.compile)
        return compiled

    return decorate


class KernelFiles:
    """One file per compiled kernel, named by a digest of its sources, argument types and target.

    Replaces Numba's `IndexDataCacheFile`, which numbers the files of a function and keeps an index of the numbers. With
    an index, two processes that save at the same time can give two kernels the same number, and a process that loads
    between the two writes of a save takes a kernel of older sources for the new one. Numba also checks only the time of
    the kernel's own file, although a kernel calls functions of other files of the package.

    Args:
        files: the replaced object, which reads single files and writes them atomically.
    """

    def __init__(self, files: Any) -> None:
        self.files = files
        self._locks: ExitStack | None = None

    def compiling_once(self, compile: Callable[..., Any]) -> Callable[..., Any]:
        """Makes a dispatcher's `compile` hold a lock from a miss in the cache until the kernel is saved.

        A process that starts at the same time waits, and then loads the kernel. Callers are locked before the functions
        that they call, so processes never wait for each other.
        """

        def compile_once(*arguments: Any, **named: Any) -> Any:
            # First Numba's own lock: a thread that waits for it must not hold one of ours.
            with global_compiler_lock, ExitStack() as locks:
                outer, self._locks = self._locks, locks  # a recursive function is compiled within its compilation
                try:
                    return compile(*arguments, **named)
                finally:
                    self._locks = outer

        return compile_once

    def load(self, key: Any) -> Any:
        """Reads the compiled kernel; None if there is no readable file, and this process is to compile it."""
        found = self._read(key)
        if found is None and self._locks is not None:
            with suppress(OSError):  # as with a failed save, every process compiles
                folder = Path(self.files._cache_path)
                folder.mkdir(parents=True, exist_ok=True)
                self._locks.enter_context(locked(folder / f".{self._name(key)}{LOCK}", _say_waiting))
                found = self._read(key)
        return found

    def _read(self, key: Any) -> Any:
        try:
            digest, content = self.files._load_data(self._name(key))
            return pickle.loads(content) if hashlib.sha256(content).digest() == digest else None
        except Exception:  # unpickling a damaged file raises many kinds; the new compilation replaces it
            return None

    def save(self, key: Any, kernel: Any) -> None:
        """Writes the kernel's file. If that fails (a full disk), every process compiles the kernel again."""
        content = self.files._dump(kernel)
        with suppress(OSError):
            self.files._save_data(self._name(key), (hashlib.sha256(content).digest(), content))

    def flush(self) -> None:
        """Removes the function's files; Numba calls it before it compiles a function again."""
        for path in Path(self.files._cache_path).glob(f"{self._stem}.*.nbc"):
            path.unlink(missing_ok=True)

    @property
    def _stem(self) -> str:
        stem: str = self.files._index_name.removesuffix(".nbi")
        return stem

    def _name(self, key: Any) -> str:
        # Numba's key: argument types, target (a GPU's compute capability), bytecode. Its repr is the same in every
        # process, its pickle is not.
        digest = hashlib.sha256(f"{numba.__version__} {sources_digest()} {key!r}".encode()).hexdigest()
        return f"{self._stem}.{digest[:20]}.nbc"


def _say_waiting(holder: str) -> None:
    _say_once(f"waits for kernels, which {holder} is compiling")


@cache
def _say_once(message: str) -> None:
    say(message)


@cache
def sources_digest() -> str:
    """SHA-256 of the names and contents of this package's sources."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()
