"""Load tests of a model server: latency, throughput and service level objectives."""

from serving.load.measurements import Slo
from serving.load.run import LoadReport, load_test

__all__ = ["LoadReport", "Slo", "load_test"]
