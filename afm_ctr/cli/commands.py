"""All sub-commands, by importing the modules that register them."""

from afm_ctr.cli import data, init, model, reports, serving, statistics

__all__ = ["data", "init", "model", "reports", "serving", "statistics"]
