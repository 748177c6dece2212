"""Plots of an explanation."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from afm_ctr.explain.effects import labels_of_slots
from afm_ctr.explain.explanation import Explanation
from afm_ctr.plots import BLUE, GREY, ORANGE, PALE_BLUE, panels, styled
from afm_ctr.schema import ResolvedSchema

_SHARES = {
    "effect_share": ("share of the pairs' movement of the logit", PALE_BLUE),
    "attention": ("share of attention", ORANGE),
}
_SIDE_BY_SIDE = 20  # slots; larger matrices are one below the other, else their names would be illegible


@styled
def bars_figure(explanation: Explanation, top: int = 20) -> Figure:
    """The first pairs as bars: the effect on the left, the shares of movement and attention on the right."""
    pairs = explanation.pairs[:top]
    shares = {name: look for name, look in _SHARES.items() if pairs and getattr(pairs[0], name) is not None}
    parts = (["effect"] if explanation.effect_of is not None else []) + (["shares"] if shares else [])
    count = max(len(parts), 1)
    figure, axes = panels(4.2 * count + 2, 0.3 * len(pairs) + 1.8, 1, count, sharey=True)
    places = np.arange(len(pairs))
    for axis, part in zip(axes, parts, strict=False):
        if part == "effect":
            axis.barh(places, [pair.effect or 0.0 for pair in pairs], color=BLUE)
            axis.set_xlabel(_effect_label(explanation))
        else:
            _bars_of_shares(axis, explanation, pairs, shares)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.axvline(0, color="black", linewidth=0.6)
    axes[0].set_yticks(places, [pair.name for pair in pairs])
    axes[0].margins(y=0.01)
    axes[0].invert_yaxis()
    figure.suptitle(explanation.title)
    return figure


def _effect_label(explanation: Explanation) -> str:
    change = "the logit's change" if explanation.effect_of == "removal" else "what the pair adds"
    return change if explanation.row is not None else f"standard deviation of {change}"


def _bars_of_shares(
    axis: Axes, explanation: Explanation, pairs: tuple[Any, ...], shares: dict[str, tuple[str, str]]
) -> None:
    height = 0.8 / len(shares)
    for number, (name, (label, colour)) in enumerate(shares.items()):
        places = np.arange(len(pairs)) + (number - (len(shares) - 1) / 2) * height
        axis.barh(places, [getattr(pair, name) for pair in pairs], height, color=colour, label=label)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    even = 1.0 / len(explanation.pairs)
    axis.axvline(even, color=GREY, linewidth=0.8, linestyle=":", label=f"even share of {len(explanation.pairs):,}")
    axis.set_xlabel("share of all pairs")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1))  # above: bars are everywhere


@styled
def heat_map_figure(explanation: Explanation, schema: ResolvedSchema) -> Figure:
    """All pairs as matrices of fields: one of shares of movement, one of shares of attention."""
    names = list(dict.fromkeys(labels_of_slots(schema)))
    place = {name: index for index, name in enumerate(names)}
    parts = []
    for attribute, colours in (("effect_share", "Blues"), ("attention", "Oranges")):
        values = np.full((len(names), len(names)), np.nan)
        for pair in explanation.pairs:
            value = getattr(pair, attribute)
            if value is not None:
                values[place[pair.fields[1]], place[pair.fields[0]]] = value
        if np.isfinite(values).any():
            parts.append((attribute, values, colours))
    side = min(max(0.19 * len(names) + 1.6, 3.5), 24)
    count = max(len(parts), 1)
    rows, across = (count, 1) if len(names) > _SIDE_BY_SIDE else (1, count)
    figure, axes = panels((side + 1) * across, (side + 0.3) * rows, rows, across)
    for axis, (attribute, values, colours) in zip(axes, parts, strict=False):
        _matrix(figure, axis, names, values, attribute, colours)
    figure.suptitle(explanation.title)
    return figure


def _matrix(figure: Figure, axis: Axes, names: list[str], values: np.ndarray, attribute: str, colours: str) -> None:
    # Shares of attention are close to one another in most models: their colour scale starts at the smallest.
    image = axis.imshow(values, cmap=colours, vmin=0 if attribute == "effect_share" else None)
    size = 7 if len(names) > 15 else 9
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.set_title(_SHARES[attribute][0])
    figure.colorbar(image, ax=axis, shrink=0.7, format=PercentFormatter(1.0))
