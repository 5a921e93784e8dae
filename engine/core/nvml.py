"""Reads the utilisation, memory and power of a GPU from NVIDIA's driver (NVML)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class GpuReading(NamedTuple):
    """Values that the driver reports for a GPU; NaN for a value that this GPU does not report.

    Attributes:
        busy: share of the time (0 to 1) in which kernels ran.
        jpeg, video: share of the time in which the JPEG and the video decoder worked.
        memory: bytes in use on the whole GPU, by all processes.
        power: watts.
        up, down: bytes per second over PCIe, to and from the GPU.
    """

    busy: float
    jpeg: float
    video: float
    memory: float
    power: float
    up: float
    down: float


def open_meter(address: str) -> Callable[[], GpuReading]:
    """Opens NVML for a GPU.

    Args:
        address: the GPU's PCI bus address (0000:4E:00.0).

    Returns:
        A function that reads the present values.

    Raises:
        ImportError: the package nvidia-ml-py is not installed.
    """
    import pynvml as nvml

    nvml.nvmlInit()
    gpu = nvml.nvmlDeviceGetHandleByPciBusId(address)

    def query(function: Callable[..., Any], *arguments: int) -> Any:
        try:
            return function(gpu, *arguments)
        except nvml.NVMLError:
            return None

    def share(percent: Any) -> float:
        return np.nan if percent is None else percent[0] / 100

    def number(value: Any, unit: float) -> float:
        return np.nan if value is None else value * unit

    def read() -> GpuReading:
        busy, memory = query(nvml.nvmlDeviceGetUtilizationRates), query(nvml.nvmlDeviceGetMemoryInfo)
        return GpuReading(
            busy=number(busy and busy.gpu, 0.01),
            jpeg=share(query(nvml.nvmlDeviceGetJpgUtilization)),
            video=share(query(nvml.nvmlDeviceGetDecoderUtilization)),
            memory=number(memory and memory.used, 1),
            power=number(query(nvml.nvmlDeviceGetPowerUsage), 1e-3),
            up=number(query(nvml.nvmlDeviceGetPcieThroughput, nvml.NVML_PCIE_UTIL_RX_BYTES), 1024),
            down=number(query(nvml.nvmlDeviceGetPcieThroughput, nvml.NVML_PCIE_UTIL_TX_BYTES), 1024),
        )

    return read
