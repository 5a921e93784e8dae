"""What NVIDIA's driver says of a GPU at work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class GpuLook(NamedTuple):
    """Shares of the time (0 to 1) in which kernels ran (`busy`) and in which the JPEG and video decoders worked;
    `memory`: bytes in use on the whole GPU; `power`: watts; `up`, `down`: bytes a second over PCIe. NaN where this GPU
    does not tell."""

    busy: float
    jpeg: float
    video: float
    memory: float
    power: float
    up: float
    down: float


def open_meter(address: str) -> Callable[[], GpuLook]:
    """Looks at the GPU of a PCI bus address (0000:4E:00.0).

    Raises:
        ImportError: without the package nvidia-ml-py.
    """
    import pynvml as nvml

    nvml.nvmlInit()
    gpu = nvml.nvmlDeviceGetHandleByPciBusId(address)

    def ask(function: Callable[..., Any], *arguments: int) -> Any:
        try:
            return function(gpu, *arguments)
        except nvml.NVMLError:
            return None

    def share(found: Any) -> float:
        return np.nan if found is None else found[0] / 100

    def number(found: Any, unit: float) -> float:
        return np.nan if found is None else found * unit

    def look() -> GpuLook:
        busy, memory = ask(nvml.nvmlDeviceGetUtilizationRates), ask(nvml.nvmlDeviceGetMemoryInfo)
        return GpuLook(
            busy=number(busy and busy.gpu, 0.01),
            jpeg=share(ask(nvml.nvmlDeviceGetJpgUtilization)),
            video=share(ask(nvml.nvmlDeviceGetDecoderUtilization)),
            memory=number(memory and memory.used, 1),
            power=number(ask(nvml.nvmlDeviceGetPowerUsage), 1e-3),
            up=number(ask(nvml.nvmlDeviceGetPcieThroughput, nvml.NVML_PCIE_UTIL_RX_BYTES), 1024),
            down=number(ask(nvml.nvmlDeviceGetPcieThroughput, nvml.NVML_PCIE_UTIL_TX_BYTES), 1024),
        )

    return look
