"""All sub-commands, by importing the modules that register them."""

from afm_ctr.cli import data, init, load, model, reports, score, statistics

__all__ = ["data", "init", "load", "model", "reports", "score", "statistics"]
