"""Synthetic logs in the shape of Criteo's with known effects: to try all commands, and to see what a model finds."""

from afm_ctr.synthetic.logs import LogsSummary, make_logs
from afm_ctr.synthetic.truth import COLUMNS, PLANTED, PlantedPair, Truth

__all__ = ["COLUMNS", "PLANTED", "LogsSummary", "PlantedPair", "Truth", "make_logs"]
