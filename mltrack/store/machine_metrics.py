"""Metrics of the machine from MLflow's own monitors, so that names and units are MLflow's."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger("mltrack.store")


def machine_monitors() -> list[Any]:
    """MLflow's monitors of processor, memory, disk, network and NVIDIA GPUs, except those that do not work here."""
    try:
        from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor
    except ImportError as error:  # the connection reports it
        log.debug("no monitors: %s", error)
        return []
    gpu_monitor._logger.setLevel(logging.ERROR)  # it warns at each sample of values that a driver does not give
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
    """{MLflow's name: value} of this moment; network traffic counts from the creation of its monitor."""
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.clear_metrics()
        monitor.collect_metrics()
        values.update(monitor.aggregate_metrics())
    return values
