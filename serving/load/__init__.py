"""Load on a model server: how fast it answers, how much it takes, and whether that is what was promised."""

from serving.load.measurements import Slo
from serving.load.run import LoadReport, load_test

__all__ = ["LoadReport", "Slo", "load_test"]
