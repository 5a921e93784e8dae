"""Utilisation, memory, power and PCIe traffic of a worker's GPU, for Prometheus."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from danqing.engine.core.device import Device
from danqing.engine.core.logs import log
from danqing.engine.core.nvml import GpuReading, open_meter


class GpuGauges(Collector):
    """Gauges of one GPU, read from the driver at each scrape. Values that the GPU does not report are left out.

    Args:
        read: reads the values; made by `open_meter`.
        address: the GPU's PCI bus address, the label `gpu`. It is the same for all workers on one GPU.
    """

    def __init__(self, read: Callable[[], GpuReading], address: str) -> None:
        self.read, self.address = read, address

    def collect(self) -> Iterator[Metric]:
        reading = self.read()
        busy = GaugeMetricFamily(
            "danqing_gpu_busy_ratio", "Share of the time that a part of the GPU is busy.", labels=["gpu", "part"]
        )
        memory = GaugeMetricFamily("danqing_gpu_memory_bytes", "In use on the whole GPU.", labels=["gpu"])
        power = GaugeMetricFamily("danqing_gpu_power_watts", "Drawn by the GPU.", labels=["gpu"])
        bus = GaugeMetricFamily(
            "danqing_gpu_pcie_bytes_per_second", "Over PCIe, by all processes.", labels=["gpu", "direction"]
        )
        for family, labels, value in (
            (busy, ["kernels"], reading.busy),
            (busy, ["jpeg"], reading.jpeg),
            (busy, ["video"], reading.video),
            (memory, [], reading.memory),
            (power, [], reading.power),
            (bus, ["up"], reading.up),
            (bus, ["down"], reading.down),
        ):
            if not math.isnan(value):
                family.add_metric([self.address, *labels], value)
        yield from (busy, memory, power, bus)


def gpu_gauges(device: Device) -> list[GpuGauges]:
    """Makes the gauges of the device: none on a CPU, and none if the driver cannot be queried (see run.log)."""
    if device.kind == "cpu":
        return []
    address = device.xp.cuda.Device(device.number).pci_bus_id
    try:
        return [GpuGauges(open_meter(address), address)]
    except Exception as problem:  # nvidia-ml-py is missing, or NVML fails; the run goes on
        log.warning("no figures of the GPU for Prometheus: %s", problem)
        return []
