"""What MLflow's own monitors measure of the machine, so that names and units are MLflow's."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger("mltrack.store")


def machine_monitors() -> list[Any]:
    """MLflow's monitors of processor, memory, disk, network and NVIDIA GPUs; without those that find nothing here."""
    try:
        from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor
    except ImportError as error:  # the connection says so in its own words
        log.debug("no monitors: %s", error)
        return []
    gpu_monitor._logger.setLevel(logging.ERROR)  # a value that a driver does not tell is warned of at each sample
    found = []
    for kind in (
        cpu_monitor.CPUMonitor,
        disk_monitor.DiskMonitor,
        network_monitor.NetworkMonitor,
        gpu_monitor.GPUMonitor,
    ):
        try:
            found.append(kind())
        except Exception as error:  # nvidia-ml-py or a driver is missing, or no network counters
            log.debug("%s: %s", kind.__name__, error)
    return found


def measured(monitors: list[Any]) -> dict[str, float]:
    """{MLflow's name: value} of this moment; the network counts from the making of its monitor."""
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.clear_metrics()
        monitor.collect_metrics()
        values.update(monitor.aggregate_metrics())
    return values
