"""A full run on a simulated GPU, in a process of its own (`run_simulated`):

    NUMBA_ENABLE_CUDASIM=1 python -m tests.simulated OUT SHARD…

Our kernels run in Numba's CUDA simulator. Mock CuPy arrays (`tests.strict`) reject operations that mix host and device.
The CPU implementations of decoder, resizer and model runtime replace those of vendors, and their results are copied to
the device. The rest of the engine is not changed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import cuda

import danqing.engine.stages.decode
import danqing.engine.stages.resize
import danqing.kernels.portable
import danqing.trt_models.engines
from danqing.engine.core.copies import copied
from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.phases import curate
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.run.settings import Settings
from danqing.engine.stages.decode import CpuDecoder
from danqing.engine.stages.resize import KernelResizer
from danqing.kernels.portable import Kernel
from danqing.trt_models.run.session import OnnxSession
from tests.strict import MockLibrary, refuse_host_arrays

RECIPE = replace(load_recipe("embedded"), also=("perceptual_hash", "caption_hash"))
HOST = Device("cpu", 1, ThreadPoolExecutor(1))
texts_copied: list[int] = []
"""Bytes of the columns of text that have been copied to the host."""


class ResidentTables(dict[Any, Any]):
    """Look-up tables on the device. Copying them is not counted, since it is done once, whatever the number of rows."""

    def __setitem__(self, key: Any, tables: Any) -> None:
        _, copy = tables
        copied.up -= copy.nbytes if isinstance(copy, np.ndarray) else sum(array.nbytes for array in copy)
        super().__setitem__(key, tables)


class MockGpu(nullcontext[None]):
    """Mock of `cupy.cuda.Device`."""

    compute_capability = "90"


class MockCupy(MockLibrary):
    """Mock of the parts of CuPy that the engine uses."""

    def __init__(self) -> None:
        super().__init__(np)
        stream = SimpleNamespace(ptr=7, synchronize=lambda: None)
        self.cuda = SimpleNamespace(
            Device=MockGpu,
            Stream=lambda non_blocking: nullcontext(stream),
            cublas=SimpleNamespace(setMathMode=lambda handle, mode: None),
            device=SimpleNamespace(get_cublas_handle=lambda: None),
            runtime=SimpleNamespace(
                getDeviceCount=lambda: 1,
                memGetInfo=lambda: (1 << 40, 1 << 40),
                cudaMemPoolAttrReleaseThreshold=4,
                deviceGetDefaultMemPool=lambda number: 1,
                memPoolSetAttribute=lambda pool, attribute, value: None,
            ),
        )
        self.get_default_memory_pool = lambda: SimpleNamespace(used_bytes=lambda: 0)


class MockDecoder:
    """Decodes on the CPU and copies the pictures to the device."""

    def __init__(self, device: Device) -> None:
        self.device, self.decoder = device, CpuDecoder(HOST)

    def decode(self, files: list[bytes]) -> list[Any]:
        return [None if picture is None else self.device.up(picture) for picture in self.decoder.decode(files)]


class MockResizer:
    """Resizes on the CPU and copies the results to the device."""

    def __init__(self, inputs: Any, device: Device) -> None:
        self.device, self.resize = device, KernelResizer(inputs, HOST)

    def __call__(self, pictures: list[Any]) -> list[Any]:
        return [self.device.up(resized) for resized in self.resize(list(map(self.device.down, pictures)))]


class MockSession:
    """Runs a model on the CPU and copies the outputs to the device."""

    def __init__(self, path: Path, device: Device, batch: int, tf32: bool) -> None:
        self.device, self.batch, self.session = device, batch, OnnxSession(path, HOST)

    def run(self, **inputs: Any) -> dict[str, Any]:
        outputs = self.session.run(**{name: self.device.down(array) for name, array in inputs.items()})
        return {name: self.device.up(array) for name, array in outputs.items()}


def run_simulated(*arguments: str, folder: Path | None = None) -> None:
    """Runs Python with these arguments and Numba's CUDA simulator, and checks that it exits with status 0."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def simulate_gpu() -> None:
    """Replaces CuPy and the vendors' parts by mocks in this process."""
    sys.modules["cupy"] = MockCupy()  # type: ignore[assignment]
    danqing.kernels.portable._resident = ResidentTables()
    danqing.engine.stages.decode.GpuDecoder = MockDecoder  # type: ignore[misc, assignment]
    danqing.engine.stages.resize.DaliResizer = MockResizer  # type: ignore[misc, assignment]
    danqing.trt_models.run.session.CudaOnnxSession = MockSession  # type: ignore[misc, assignment]
    cuda.external_stream = lambda handle: handle  # the simulator has none
    launch, simulator_lock = Kernel.launch, Lock()  # the simulator runs one kernel at a time

    def launch_strictly(self: Kernel, device: Any, rows: int, *arguments: Any) -> None:
        if device.kind == "cuda":
            refuse_host_arrays(arguments, self.name)  # Numba would copy them to the device and back without an error
        with simulator_lock if device.kind == "cuda" else nullcontext():
            launch(self, device, rows, *arguments)

    Kernel.launch = launch_strictly  # type: ignore[method-assign]
    np.seterr(over="ignore")
    on_host = Strings.on_host

    def count_and_copy(self: Strings, device: Device) -> Strings:
        if device.kind == "cuda":
            texts_copied.append(self.size)
        return on_host(self, device)

    Strings.on_host = count_and_copy  # type: ignore[method-assign]


if __name__ == "__main__":
    simulate_gpu()
    out = Path(sys.argv[1])
    _, _, spans = curate(sys.argv[2:], out, RECIPE, Settings(device="cuda", score_everything=True))
    copies = {name: span.up for name, span in spans.items()} | {"text to the host": sum(texts_copied)}
    out.with_suffix(".json").write_text(json.dumps(copies))  # of each stage, bytes to the device
