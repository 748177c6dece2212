"""The ``afm-ctr`` command."""

from afm_ctr.cli.main import main

__all__ = ["main"]
