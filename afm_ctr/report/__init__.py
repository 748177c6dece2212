"""One page about a training run: what went in, how it went, how good the model is and where it is not."""

from afm_ctr.report.command import report

__all__ = ["report"]
