"""Statistics of prepared data sets by field, and drift between two data sets. Must not import TensorFlow."""

from __future__ import annotations

from afm_ctr.statistics.collect import SAMPLE_ROWS, Collector, PartialStatistics
from afm_ctr.statistics.compare import Drift, FieldDrift, drift
from afm_ctr.statistics.data_statistics import TOP_VALUES, DataStatistics, FieldStatistics, TopValue

__all__ = [
    "SAMPLE_ROWS",
    "TOP_VALUES",
    "Collector",
    "DataStatistics",
    "Drift",
    "FieldDrift",
    "FieldStatistics",
    "PartialStatistics",
    "TopValue",
    "drift",
]
