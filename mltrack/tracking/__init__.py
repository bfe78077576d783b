"""Metrics of a run: statistics, exports, and the way to MLflow through the journal."""

from mltrack.tracking.delivery import Delivery, deliver_in_background
from mltrack.tracking.statistics import MetricEntry, MetricStatistics
from mltrack.tracking.tracker import TrainingMetricsTracker

__all__ = ["Delivery", "MetricEntry", "MetricStatistics", "TrainingMetricsTracker", "deliver_in_background"]
