"""One page about a training run: data, training, the model's quality, and its weak spots."""

from afm_ctr.report.command import report

__all__ = ["report"]
