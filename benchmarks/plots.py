"""Plots of the benchmarks' tables: small PNGs, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Points = Sequence[tuple[float, float]]


def panels(
    path: Path, title: str, names: tuple[str, str], parts: Mapping[str, Mapping[str, Points]], dashed: str = ""
) -> None:
    """Lines on logarithmic axes, one panel per part, side by side with the same scale.

    Args:
        path: of the PNG.
        title: of the figure.
        names: of the two axes.
        parts: by the title of a panel, its lines by name.
        dashed: the name of a line that is a limit and not a measurement.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    order = list(dict.fromkeys(name for lines in parts.values() for name in lines))
    figure, axes = plt.subplots(1, len(parts), figsize=(1.2 + 3.1 * len(parts), 3.4), sharey=True, squeeze=False)
    for axis, (part, lines) in zip(axes[0], parts.items(), strict=True):
        ticks = sorted({x for points in lines.values() for x, _ in points})
        for name, points in lines.items():
            style = {"linestyle": "--", "color": "grey"} if name == dashed else {"marker": "o", "markersize": 3.5}
            style.setdefault("color", f"C{order.index(name)}")
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1.3, **style)
        axis.set(xscale="log", yscale="log", title=part, xlabel=names[0])
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3, which="both")
    axes[0][0].set_ylabel(names[1])
    handles = {label: h for a in axes[0] for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)
