"""Gauges of a GPU for Prometheus, with a stand-in for the driver."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.spans import Spans
from danqing.engine.score.gpu_metrics import gpu_gauges
from danqing.engine.score.metrics import serve_metrics
from tests.engine.score.test_metrics import port, scrape
from tests.nvml import BUS_ADDRESS, stand_in

__all__ = ["port"]


@pytest.fixture
def gpu() -> Device:
    library = SimpleNamespace(cuda=SimpleNamespace(Device=lambda number: SimpleNamespace(pci_bus_id=BUS_ADDRESS)))
    return Device("cuda", 1, ThreadPoolExecutor(1), library, number=3)


def test_a_gpu_is_served_with_the_stages(gpu: Device, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    with serve_metrics(Spans(), port, "127.0.0.1", gpu):
        seen = {name: value for name, value in scrape(port).items() if "_gpu_" in name}
    at = f'gpu="{BUS_ADDRESS}"'
    assert seen == {
        f'danqing_gpu_busy_ratio{{{at},part="kernels"}}': 0.87,
        f'danqing_gpu_busy_ratio{{{at},part="jpeg"}}': 0.4,  # the video decoder is not reported
        f"danqing_gpu_memory_bytes{{{at}}}": 3 << 30,
        f"danqing_gpu_power_watts{{{at}}}": 350.0,
        f'danqing_gpu_pcie_bytes_per_second{{direction="up",{at}}}': 2000 * 1024,
        f'danqing_gpu_pcie_bytes_per_second{{direction="down",{at}}}': 7 * 1024,
    }


def test_a_run_goes_on_if_the_driver_cannot_be_queried(
    gpu: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with caplog.at_level(logging.WARNING, "danqing"):
        assert gpu_gauges(gpu) == []
    assert "no figures of the GPU for Prometheus" in caplog.text


def test_a_cpu_has_no_gauges(device: Device) -> None:
    assert gpu_gauges(device) == []
