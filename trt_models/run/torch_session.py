"""Sessions that run a model in torch.

This module is imported only when such an engine is compiled or opened: torch is an optional dependency.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import torch
from torch.utils.dlpack import from_dlpack

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.precision import HALVES, halved
from danqing.trt_models.run.session import MAX_CUDA_GRAPHS, Session
from danqing.trt_models.run.torch_graph import TorchGraph

if TYPE_CHECKING:
    from danqing.engine.core.device import Device

Tensors = dict[str, torch.Tensor]


def write_graph(source: Path, out: Path, precision: str) -> None:
    """Checks that torch can run a model, and writes its graph in the given precision.

    Args:
        source: the model in float32.
        out: the ONNX file to write, weights included.
        precision: `fp32`, `fp16` or `bf16`.

    Raises:
        DanqingError: an operator that is not supported, or a weight that fp16 cannot hold.
    """
    model = onnx.load(str(source))
    if precision in HALVES:
        model = halved(model, precision)
    TorchGraph(model, torch.device("cpu"))
    onnx.save(model, str(out))


def open_torch_session(path: Path, device: Device, batch: tuple[int, int, int]) -> Session:
    """Opens a file that `write_graph` wrote.

    Args:
        path: the ONNX file.
        device: the device to run on.
        batch: minimum, usual and maximum rows of a batch; a CPU runs the usual number, a GPU the maximum.

    Raises:
        DanqingError: as `CudaTorchSession`.
    """
    if device.kind == "cuda":
        return CudaTorchSession(path, device, batch[2])
    return TorchSession(path, device, batch[1])


class TorchSession:
    """Torch on a CPU: one single-threaded call per core, as `OnnxSession`.

    Args:
        path: the ONNX file.
        device: its threads run the batches.
        batch: rows of every batch; shorter ones are padded.
    """

    def __init__(self, path: Path, device: Device, batch: int) -> None:
        self._device, self.batch = device, batch
        self._graph = TorchGraph(onnx.load(str(path)), torch.device("cpu"))

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        rows = len(next(iter(inputs.values())))
        tensors = {name: torch.from_numpy(np.require(array, requirements=("C", "W"))) for name, array in inputs.items()}

        def run_from(at: int) -> Tensors:
            torch.set_num_threads(1)  # so that the order of sums does not depend on the number of cores
            with torch.inference_mode():
                return self._graph(**_batch_at(tensors, at, self.batch))

        parts = self._device.map(run_from, range(0, rows, self.batch))
        return {name: np.concatenate([part[name].numpy() for part in parts])[:rows] for name in self._graph.outputs}


class CudaTorchSession:
    """Torch on a GPU, on the stream of the calling thread; inputs and outputs stay in the GPU's memory.

    The first `MAX_CUDA_GRAPHS` shapes of batches are captured as CUDA graphs, as in `TensorRtSession`.

    Args:
        path: the ONNX file.
        device: the GPU.
        batch: rows of every batch; shorter ones are padded.

    Raises:
        DanqingError: the installed torch cannot use a GPU.
    """

    def __init__(self, path: Path, device: Device, batch: int) -> None:
        if not torch.cuda.is_available():
            raise DanqingError(
                f"{path}: torch {torch.__version__} cannot use a GPU; install a build for CUDA (pytorch.org)"
            )
        # By default torch may add partial sums in 16 bits. These settings apply to the whole process.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self._device, self.batch = device, batch
        self._place = torch.device("cuda", device.number)
        self._graph = TorchGraph(onnx.load(str(path)), self._place)
        self._captured: dict[tuple[torch.Size, ...], _CapturedBatch] = {}
        self._pool = torch.cuda.graph_pool_handle()  # shared, since a session runs one graph at a time

    def run(self, **inputs: Any) -> dict[str, Any]:
        xp = self._device.xp
        rows = len(next(iter(inputs.values())))
        arrays = {name: xp.ascontiguousarray(self._device.up(array)) for name, array in inputs.items()}
        stream = torch.cuda.ExternalStream(self._device.stream, self._place)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream), torch.inference_mode():
            tensors = {name: from_dlpack(array) for name, array in arrays.items()}
            parts = [self._run_batch(_batch_at(tensors, at, self.batch)) for at in range(0, rows, self.batch)]
            return {
                name: xp.concatenate([xp.from_dlpack(part[name]) for part in parts])[:rows]
                for name in self._graph.outputs
            }

    def _run_batch(self, inputs: Tensors) -> Tensors:
        shapes = tuple(tensor.shape for tensor in inputs.values())
        if shapes not in self._captured:
            if len(self._captured) == MAX_CUDA_GRAPHS:
                return self._graph(**inputs)
            self._captured[shapes] = self._capture(inputs)
        return self._captured[shapes].replay(inputs)

    def _capture(self, like: Tensors) -> _CapturedBatch:
        """Runs once, so that libraries are loaded and kernels chosen for these shapes, and once for the capture."""
        inputs = {name: tensor.clone() for name, tensor in like.items()}
        self._graph(**inputs)
        self._device.wait()
        graph = torch.cuda.CUDAGraph()
        with _capture_lock:
            # `torch.cuda.graph` would wait for the whole device and fail if another thread allocates memory meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="relaxed")
            outputs = self._graph(**inputs)
            graph.capture_end()
        return _CapturedBatch(inputs, outputs, graph)


_capture_lock = Lock()
"""Held during a capture: torch's random generator and allocator take part in every capture of the process."""


class _CapturedBatch(NamedTuple):
    """A CUDA graph that runs one batch, with its fixed input and output tensors."""

    inputs: Tensors
    outputs: Tensors
    graph: torch.cuda.CUDAGraph

    def replay(self, inputs: Tensors) -> Tensors:
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor)
        self.graph.replay()  # on this thread's stream
        return {name: tensor.clone() for name, tensor in self.outputs.items()}


def _batch_at(inputs: Tensors, at: int, batch: int) -> Tensors:
    """Returns rows `at` … `at + batch - 1`, padded with copies of row `at` as by `trt_models.run.session.pad_rows`."""
    some = {name: tensor[at : at + batch] for name, tensor in inputs.items()}
    missing = batch - len(next(iter(some.values())))
    if not missing:
        return some
    return {name: torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]) for name, tensor in some.items()}
