"""A mock of FAISS for GPUs: the classes and methods that the engine uses, with the types that they take.

It reads and writes arrays at their addresses, in host memory, and fails for another stream, type or order of calls.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np

METRIC_INNER_PRODUCT, Float32, Float16 = 0, "float32", "float16"
MAX_NEAREST, MAX_PROBES = 2048, 2048


class Pointer:
    """An address as a C type."""

    def __init__(self, kind: str, address: int) -> None:
        self.kind, self.address = kind, address

    def read(self, kind: str, number: type, *shape: int) -> np.ndarray:
        """The array there, if the pointer has this C type."""
        assert self.kind == kind, f"{kind} * wanted, {self.kind} * given"
        size = int(np.prod(shape)) * np.dtype(number).itemsize
        return np.frombuffer((ctypes.c_uint8 * size).from_address(self.address), number).reshape(shape)


def cast_integer_to_void_ptr(address: int) -> Pointer:
    return Pointer("void", address)


def cast_integer_to_float_ptr(address: int) -> Pointer:
    return Pointer("float", address)


def cast_integer_to_idx_t_ptr(address: int) -> Pointer:
    return Pointer("idx_t", address)


def cast_integer_to_cudastream_t(handle: int) -> Pointer:
    return Pointer("cudaStream_t", handle)


class StandardGpuResources:
    streams: dict[int, int]

    def __init__(self) -> None:
        self.streams = {}

    def setDefaultStream(self, device: int, stream: Pointer) -> None:  # noqa: N802
        assert stream.kind == "cudaStream_t"
        self.streams[device] = stream.address


class GpuIndexFlatConfig:
    device = 0
    useFloat16 = False  # noqa: N815


class GpuIndexIVFFlatConfig:
    device = 0


class _GpuIndex:
    """Vectors, stored in `kind`; with `lists` they are searched in those of the nearest centres."""

    def __init__(self, resources: StandardGpuResources, width: int, device: int, kind: type, lists: int) -> None:
        assert resources.streams[device] == 7, "the stream of the simulated GPU (tests.simulated)"
        self.width, self.kind, self.lists, self.nprobe = width, kind, lists, 1
        self.vectors, self.centres = np.empty((0, width), np.float32), np.empty((0, width), np.float32)
        self.cp = SimpleNamespace(min_points_per_centroid=39)

    def train_ex(self, count: int, vectors: Pointer, numeric_type: str) -> None:
        assert self.lists and self.cp.min_points_per_centroid == 1
        self.centres = self._read(count, vectors, numeric_type)[: self.lists]

    def add_ex(self, count: int, vectors: Pointer, numeric_type: str) -> None:
        assert len(self.centres) or not self.lists, "not trained"
        self.vectors = np.concatenate([self.vectors, self._read(count, vectors, numeric_type)])

    def search_ex(
        self, count: int, queries: Pointer, numeric_type: str, k: int, distances: Pointer, labels: Pointer
    ) -> None:
        assert 0 < k <= MAX_NEAREST and 0 < self.nprobe <= MAX_PROBES
        asked = self._read(count, queries, numeric_type)
        products = asked @ self.vectors.T
        if self.lists:
            of, nearest = (self.vectors @ self.centres.T).argmax(1), np.argsort(-asked @ self.centres.T, 1)
            probed = (nearest[:, : self.nprobe, None] == of).any(1)
            products = np.where(probed, products, -np.inf)
        best = np.argsort(-products, 1, kind="stable")[:, :k]
        values = np.take_along_axis(products, best, 1)
        found = min(k, len(self.vectors))
        out = distances.read("float", np.float32, count, k), labels.read("idx_t", np.int64, count, k)
        out[0][:], out[1][:] = -np.inf, -1
        out[0][:, :found], out[1][:, :found] = values, np.where(values > -np.inf, best, -1)

    def _read(self, count: int, vectors: Pointer, numeric_type: str) -> np.ndarray:
        assert numeric_type == Float32, "unsupported numeric type"
        found = vectors.read("void", np.float32, count, self.width)
        return found.astype(self.kind).astype(np.float32)


class GpuIndexFlatIP(_GpuIndex):
    def __init__(self, resources: StandardGpuResources, width: int, config: GpuIndexFlatConfig) -> None:
        assert isinstance(config, GpuIndexFlatConfig) and config.useFloat16
        super().__init__(resources, width, config.device, np.float16, 0)


class GpuIndexIVFFlat(_GpuIndex):
    def __init__(
        self, resources: StandardGpuResources, width: int, lists: int, metric: int, config: GpuIndexIVFFlatConfig
    ) -> None:
        assert metric == METRIC_INNER_PRODUCT and isinstance(config, GpuIndexIVFFlatConfig)
        super().__init__(resources, width, config.device, np.float32, lists)
