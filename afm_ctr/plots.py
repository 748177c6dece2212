"""The look of plots: one palette, one style, and figures as bytes."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, RED, GREY = "#1b6ca8", "#d9822b", "#b3261e", "#7a868f"
PALE_BLUE, PALE_GREY = "#8fb8d8", "#b9c4cc"

# Decorates a function that draws.
styled = matplotlib.rc_context(
    {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "figure.titlesize": 11,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "text.parse_math": False,  # "$" in a name is a dollar sign, not a formula
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
    }
)


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure, size in inches, and its axes row by row; ``options`` are those of ``Figure.subplots``."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns, **options)).ravel())


@styled
def svg(figure: Figure) -> bytes:
    """A figure as SVG for a page: letters as outlines, the same bytes for the same figure."""
    target = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "afm-ctr", "svg.fonttype": "path"}):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


@styled
def png(figure: Figure) -> bytes:
    """A figure as PNG for a file."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120)
    return target.getvalue()
