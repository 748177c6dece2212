"""Attentional factorization machines for click-through rate, from raw logs to a scored request."""

__version__ = "0.1.0"
