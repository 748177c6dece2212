"""Detects a process forked after TensorFlow was used: its threads are gone, and an operation would wait forever."""

from __future__ import annotations

import os
import sys

from afm_ctr.errors import UserError

_left_behind = False


def _look() -> None:
    global _left_behind
    context = sys.modules.get("tensorflow.python.eager.context")
    used = context is not None and context.context_safe()
    _left_behind = _left_behind or bool(used and used._initialized)


os.register_at_fork(after_in_child=_look)


def refuse_forked() -> None:
    """Raise UserError in such a process; call it before anything uses TensorFlow."""
    if _left_behind:
        raise UserError(
            "this process was forked from one that had used TensorFlow, which does not work in it; start workers by "
            "'spawn' (multiprocessing.get_context('spawn'), DataLoader(multiprocessing_context='spawn'))"
        )
