"""The cache of compiled kernels: the next process loads them, but only for the same target and sources."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest

from danqing.engine.core.errors import DanqingError
from danqing.engine.decide.dedup.products import PRODUCTS
from danqing.kernels import compiled
from danqing.kernels.neighbours import components
from danqing.kernels.neighbours import pairs as neighbours
from danqing.kernels.pictures import fingerprints
from danqing.kernels.portable import Kernel

INTEGERS = np.zeros(2, np.int64)
TILE = np.zeros((2, 2), PRODUCTS["cuda"].kind)
ROWS = neighbours.Rows(INTEGERS, np.zeros(2), INTEGERS)
KERNELS: list[tuple[Kernel, tuple[Any, ...]]] = [
    (components.find_roots, (INTEGERS, INTEGERS)),
    (fingerprints.join_in_buckets, (INTEGERS.astype(np.uint64), INTEGERS, INTEGERS.astype(np.uint64), 4, INTEGERS)),
    (neighbours.find_nearest, (TILE, 0.9, INTEGERS, INTEGERS, 0.9, ROWS, ROWS, INTEGERS, INTEGERS)),
]
"""Two kernels with a thread per row, and one with a block of threads per row."""


def compile_without_gpu(capability: tuple[int, int]) -> dict[str, Any]:
    """Compiles `KERNELS` like their first launch on a GPU, with a mock driver that loads nothing.

    Returns:
        `hits`: number of kernels loaded from disk. `code`: kernel → digest of its machine code. `path`: the folder.
    """
    from numba import int64, typeof
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import devices

    gpu = SimpleNamespace(compute_capability=capability, id=0)
    function = SimpleNamespace(module=SimpleNamespace(initialized=True))
    module = SimpleNamespace(get_function=lambda name: function)
    context = SimpleNamespace(device=gpu, create_module_image=lambda *arguments: module)
    devices.get_context = lambda number=None: context
    dispatcher.get_current_device = lambda: gpu
    hits, code = 0, {}
    for kernel, arguments in KERNELS:
        kinds = tuple(map(typeof, arguments))
        loaded = kernel.on_gpu.compile(kinds if kernel.block_body else (int64, *kinds))
        hits += kernel.on_gpu.stats.cache_hits.total()
        code[kernel.name] = hashlib.sha256(loaded.library.get_cubin().code).hexdigest()
    return {"hits": hits, "code": code, "path": KERNELS[0][0].on_gpu.stats.cache_path}


COMPILE = """
import json
import sys
from tests.kernels.test_compiled import compile_without_gpu
print(json.dumps(compile_without_gpu((int(sys.argv[1]), 0))))
"""


def start(folder: Path, *arguments: str, script: str = COMPILE) -> subprocess.Popen[str]:
    """Starts a Python process that runs the script with `folder` as the cache."""
    environment = os.environ | {"DANQING_CACHE": str(folder), "PYTHONPATH": str(Path.cwd())}
    for name in ("NUMBA_CACHE_DIR", "CUPY_CACHE_DIR"):
        environment.pop(name, None)
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> Any:
    """Waits for a process; returns its last line of output, which is JSON."""
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def test_the_next_process_loads_the_compiled_kernels(tmp_path: Path) -> None:
    together = [start(tmp_path, "9"), start(tmp_path, "9"), start(tmp_path, "8")]
    first, second, older = map(outcome, together)
    assert first["hits"] + second["hits"] == len(KERNELS)  # one compiles a kernel, the other waits and loads it
    again, older_again = outcome(start(tmp_path, "9")), outcome(start(tmp_path, "8"))
    assert again["hits"] == older_again["hits"] == len(KERNELS)
    assert again["code"] == first["code"] == second["code"] != older["code"] == older_again["code"]
    assert Path(again["path"]).is_relative_to(tmp_path / "numba") and older["hits"] == 0


def test_the_users_cache_folders_are_not_overridden(tmp_path: Path) -> None:
    script = """
import json
import os
os.environ["CUPY_CACHE_DIR"] = "mine"
import numba
import danqing.kernels
print(json.dumps([os.environ["CUPY_CACHE_DIR"], os.environ["NUMBA_CACHE_DIR"], numba.config.CACHE_DIR]))
"""
    there = str(tmp_path / "numba")
    assert outcome(start(tmp_path, script=script)) == ["mine", there, there]


def test_the_error_without_a_writable_folder_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import CompileResultCacheImpl

    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])
    monkeypatch.setenv("DANQING_CACHE", "/nowhere")
    with pytest.raises(DanqingError, match=r"^/nowhere: cannot be written to; set DANQING_CACHE to a writable folder"):
        compiled.cached(numba.njit)(outcome)


@pytest.fixture
def files(tmp_path: Path) -> compiled.KernelFiles:
    from numba.core.caching import IndexDataCacheFile

    return compiled.KernelFiles(IndexDataCacheFile(str(tmp_path), "double", None))


def test_a_kernel_is_found_by_its_key_and_the_sources(
    files: compiled.KernelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.save("float", "code for floats")
    files.save("int", "code for integers")
    assert files.load("float") == "code for floats" and files.load("int") == "code for integers"
    assert files.load("string") is None
    monkeypatch.setattr(compiled, "sources_digest", lambda: "others")
    assert files.load("float") is None
    files.save("float", "newer code")
    monkeypatch.undo()
    assert files.load("float") == "code for floats"
    files.flush()
    assert files.load("float") is None and not list(tmp_path.iterdir())


def test_a_damaged_file_is_replaced(files: compiled.KernelFiles, tmp_path: Path) -> None:
    files.save("float", "code")
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for damage in (b"", b"code", content[:-3], content.replace(b"code", b"cods")):
        path.write_bytes(damage)
        assert files.load("float") is None
    files.save("float", "code")
    assert files.load("float") == "code"


def test_a_full_disk_does_not_end_a_run(files: compiled.KernelFiles, tmp_path: Path) -> None:
    files.files._cache_path = str(tmp_path / "none")
    files.save("float", "code")
    assert files.load("float") is None


def test_kernels_compile_with_numpy_2_5() -> None:
    script = """
import json
import numpy
vars(numpy).pop("row_stack", None)
from tests.kernels.test_compiled import KERNELS
print(json.dumps([kernel.ptx((9, 0), *arguments) for kernel, arguments in KERNELS]))
"""
    assert all(".target sm_90" in text for text in outcome(start(Path(os.environ["DANQING_CACHE"]), script=script)))
