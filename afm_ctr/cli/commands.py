"""All sub-commands, by importing the modules that register them."""

from afm_ctr.cli import data, load, model, reports, score, statistics

__all__ = ["data", "load", "model", "reports", "score", "statistics"]
