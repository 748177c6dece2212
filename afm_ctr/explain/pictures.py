"""Pictures of an explanation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from afm_ctr.explain.explanation import Explanation
from afm_ctr.schema import ResolvedSchema

_EFFECT, _ATTENTION = "#1b6ca8", "#d9822b"


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=120)
    return path


def bars_figure(explanation: Explanation, top: int = 20) -> Figure:
    """The first pairs as bars: effect on the left, and on the right the share of attention where there is one."""
    pairs = explanation.pairs[:top]
    panels = []
    if pairs and pairs[0].effect is not None:
        one = explanation.row is not None
        panels.append(
            ("change of the logit" if one else "standard deviation of the logit's change", "effect", _EFFECT)
        )
    if pairs and pairs[0].attention is not None:
        panels.append(("share of attention", "attention", _ATTENTION))
    figure = Figure(figsize=(4.2 * max(len(panels), 1) + 2, 0.28 * len(pairs) + 1.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, max(len(panels), 1), sharey=True))
    places = np.arange(len(pairs))
    for axis, (label, attribute, colour) in zip(axes, panels, strict=True):
        axis.barh(places, [getattr(pair, attribute) for pair in pairs], color=colour)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        if attribute == "attention":
            axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_xlabel(label)
        axis.axvline(0, color="black", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, [pair.name for pair in pairs])
    axes[0].invert_yaxis()
    figure.suptitle(_title(explanation), fontsize=11)
    return figure


def heat_map_figure(explanation: Explanation, schema: ResolvedSchema) -> Figure:
    """All pairs as a matrix of slots, one for the effect and one for the attention."""
    names = [slot.name for slot in schema.slots]
    place = {name: index for index, name in enumerate(names)}
    panels = []
    for label, attribute, colours in (("effect", "effect", "Blues"), ("attention", "attention", "Oranges")):
        values = np.full((len(names), len(names)), np.nan)
        for pair in explanation.pairs:
            value = getattr(pair, attribute)
            if value is not None:
                values[place[pair.fields[1]], place[pair.fields[0]]] = abs(value)
        if np.isfinite(values).any():
            panels.append((label, values, colours))
    side = min(max(0.19 * len(names) + 1.6, 3.5), 24)
    figure = Figure(figsize=((side + 1) * max(len(panels), 1), side), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, max(len(panels), 1)))
    for axis, (label, values, colours) in zip(axes, panels, strict=True):
        _matrix(figure, axis, names, values, label, colours)
    figure.suptitle(_title(explanation), fontsize=11)
    return figure


def _matrix(figure: Figure, axis: Axes, names: list[str], values: np.ndarray, label: str, colours: str) -> None:
    # Shares are close to one another in most models: the scale of colours starts at the smallest of them.
    image = axis.imshow(values, cmap=colours, vmin=0 if label == "effect" else None)
    size = 7 if len(names) > 15 else 9
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.set_title(label, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    shares = PercentFormatter(1.0) if label == "attention" else None
    figure.colorbar(image, ax=axis, shrink=0.7, format=shares)


def _title(explanation: Explanation) -> str:
    if explanation.row is None:
        return f"{explanation.model}: {explanation.rows:,} rows of {explanation.split}"
    return f"{explanation.model}: row {explanation.row.number} of {explanation.split}, {explanation.row.score:.4f}"
