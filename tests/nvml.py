"""A mock of NVIDIA's driver: replaces the functions of nvidia-ml-py that need a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

BUS_ADDRESS = "0000:4E:00.0"


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces functions of pynvml by mocks with the same parameters.

    The mock GPU runs at 87 %, uses 3 GiB and 350 W, and does not report the use of its video decoder.
    """
    import pynvml

    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByPciBusId": lambda pciBusId: pciBusId,  # noqa: N803
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=87),
        "nvmlDeviceGetMemoryInfo": lambda handle, version=None: SimpleNamespace(used=3 << 30),
        "nvmlDeviceGetJpgUtilization": lambda handle: [40, 1000],
        "nvmlDeviceGetDecoderUtilization": lambda handle: pynvml._nvmlCheckReturn(pynvml.NVML_ERROR_NOT_SUPPORTED),
        "nvmlDeviceGetPowerUsage": lambda handle: 350_000,
        "nvmlDeviceGetPcieThroughput": lambda device, counter: 2000 if counter == pynvml.NVML_PCIE_UTIL_RX_BYTES else 7,
    }
    for name, answer in answers.items():
        real = getattr(pynvml, name)
        count = real.__code__.co_argcount
        assert answer.__code__.co_varnames[:count] == real.__code__.co_varnames[:count]
        monkeypatch.setattr(pynvml, name, answer)
