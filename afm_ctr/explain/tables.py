"""An explanation as tables, for a terminal and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from afm_ctr.explain.explanation import Explanation, PairEffect, RowFacts
from afm_ctr.visible import csv_text, visible

_NAME = 24  # characters of a pair's name that fit into eighty columns
_OF_REQUEST = 3  # pairs of each request in a terminal


def columns(explanation: Explanation) -> dict[str, str]:
    """The figures that the pairs of this explanation have: attribute to heading."""
    one = explanation.row is not None
    wanted: dict[str, str] = {}
    if explanation.effect_of is not None:
        wanted["effect"] = "change of logit" if one else "effect (std of change)"
        wanted["effect_share"] = "share of movement"
    if explanation.has_contributions:
        wanted["contribution"] = "contribution" if one else "mean contribution"
    if explanation.has_attention:
        wanted["attention"] = "attention" if one else "mean attention"
        wanted["attention_rank"] = "its rank"
    if explanation.pairs and explanation.pairs[0].weighted_attention is not None:
        wanted["weighted_attention"] = "weighted attention"
    return wanted


def cell(attribute: str, value: float | None, one: bool = False) -> str:
    """A figure of a pair as text: shares in per cent, and signed if it may be negative."""
    if value is None:
        return ""
    if attribute in ("attention", "weighted_attention", "effect_share", "present"):
        return share(value)
    if attribute == "attention_rank":
        return f"{value:.0f}"
    return f"{value:+.4f}" if one or attribute == "contribution" else f"{value:.4f}"


def share(value: float) -> str:
    """In per cent, two digits: of hundreds of pairs each has a small one, and no sample bears out a third."""
    size = 100 * abs(value)
    digits = 1 - math.floor(math.log10(size)) if size > 0 else 0
    return f"{value:.{min(max(digits, 0), 4)}%}"


def table(explanation: Explanation, top: int = 10) -> Group:
    """The first ``top`` pairs for a terminal, and how far the weights may be trusted."""
    main = Table()
    main.add_column("rank", justify="right")
    wanted, one = columns(explanation), explanation.row is not None
    wanted.pop("weighted_attention", None)  # does not fit into eighty columns; the files have it
    if not one or "attention" in wanted:
        wanted.pop("contribution", None)
    pairs = explanation.pairs[:top]
    # Headings wrap before names do.
    main.add_column("pair", overflow="fold", min_width=min(_NAME, max((len(pair.name) for pair in pairs), default=0)))
    for name, heading in wanted.items():
        _numbers(main, heading, [cell(name, getattr(pair, name), one) for pair in pairs])
    for pair in pairs:
        main.add_row(str(pair.rank), escape(pair.name), *(cell(name, getattr(pair, name), one) for name in wanted))
    parts: list[Any] = [Text(visible(explanation.title)), main]
    if explanation.row is not None:
        parts.append(linear_table(explanation.row, top))
    if explanation.requests:
        parts.append(_request_table(explanation.requests))
    if (agreement := explanation.comparison) is not None:
        parts.append(agreement.figures() + " " + agreement.verdict())
    parts += [escape(sentence) for sentence in explanation.missing()]
    parts += [f"wrote {escape(file)}" for file in explanation.files]
    return Group(*parts)


def csv_of_pairs(pairs: Sequence[PairEffect]) -> bytes:
    """All pairs, one per line."""
    names = ["effect", "mean_change", "effect_share", "contribution", "attention", "attention_rank"]
    names += ["weighted_attention", "present", "slot_pairs"]
    lines = [[pair.rank, *pair.fields, *_values(pair, names)] for pair in pairs]
    return csv_bytes(["rank", "first", "second", *names], lines)


def csv_of_requests(requests: Sequence[Explanation]) -> bytes:
    """All pairs of all requests, one per line."""
    names = ["effect", "effect_share", "contribution", "attention", "attention_rank", "weighted_attention"]
    lines = []
    for request in requests:
        assert request.row is not None
        label = "" if request.row.label is None else request.row.label
        head = [request.row.number, request.row.key, label, request.row.score]
        lines += [[*head, pair.rank, *pair.fields, *_values(pair, names)] for pair in request.pairs]
    return csv_bytes(["row", "key", "label", "score", "rank", "first", "second", *names], lines)


def _values(pair: PairEffect, names: list[str]) -> list[Any]:
    return ["" if (value := getattr(pair, name)) is None else value for name in names]


def csv_bytes(header: list[str], lines: list[list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows(
        [csv_text(cell) if isinstance(cell, str) else cell for cell in line] for line in [header, *lines]
    )
    return text.getvalue().encode("utf-8", "replace")


def linear_table(row: RowFacts, top: int) -> Group:
    found = Table()
    found.add_column("slot")
    found.add_column("holds")
    found.add_column("its own term", justify="right")
    for name, content, term in row.linear[:top]:
        found.add_row(escape(name), escape(visible(content)), f"{term:+.4f}")
    return Group(Text(f"single slots (bias {row.bias:+.4f}, logit {row.logit:+.4f})"), found)


def _request_table(requests: Sequence[Explanation]) -> Group:
    found = Table()
    rows: list[list[str]] = []
    for request in requests:
        row = request.row
        assert row is not None
        label = "" if row.label is None else f"{row.label:g}"
        head = [str(row.number), visible(row.key), label, f"{row.score:.6f}"]
        for pair in request.pairs[:_OF_REQUEST]:  # one row each: figures stay next to a wrapped name
            figures = [cell("effect", pair.effect, one=True), cell("attention", pair.attention)]
            rows.append([*head, pair.name, *figures])
            head = [""] * len(head)
    for place, heading in enumerate(("row", "key", "label", "score", "pair", "change of logit", "attention")):
        if heading in ("key", "pair"):
            found.add_column(heading, overflow="fold")
        else:
            _numbers(found, heading, [row[place] for row in rows])
    for cells in rows:
        found.add_row(*map(escape, cells))
    return Group(Text("single rows, each with its strongest pairs"), found)


def _numbers(table: Table, heading: str, cells: Sequence[str]) -> None:
    """A column as narrow as its figures and the words of its heading, so that its table fits."""
    table.add_column(heading, justify="right", width=max(map(len, [*cells, *heading.split()]), default=1))
