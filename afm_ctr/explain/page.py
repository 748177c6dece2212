"""An explanation as files: tables, pictures, and one self-contained HTML page with all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from afm_ctr.explain import pictures, tables
from afm_ctr.explain.explanation import Explanation, RowFacts
from afm_ctr.explain.tables import cell, columns
from afm_ctr.io.files import as_user_error, write_bytes
from afm_ctr.plots import png
from afm_ctr.schema import ResolvedSchema
from afm_ctr.webpage import Page

_TOP, _OF_REQUEST, _MOST = 20, 10, 2000  # pairs shown at once, of a request, and in the folded table of all

_WORDS = {
    "effect": (
        "Effect: the standard deviation, over the rows, of the change of the logit when the pair is taken out (and "
        "the others share its attention). A pair that moves every row alike has none, since it changes no order of "
        "rows; a row without the pair counts as a change of 0."
    ),
    "effect_share": (
        "Share of movement: Σ |change by this pair| over the rows, divided by Σ |change| over the rows and pairs. "
        "It is the share of attention weighted by its effect on the logit; the effect of a pair holds its attention "
        "already. Unlike the effect it counts what is the same in all rows."
    ),
    "contribution": (
        "Contribution: what the pair adds to the logit as it stands, a share of attention times the product it is "
        "spent on; contributions, single slots and the bias sum to the logit."
    ),
    "attention": "Attention: the pair's share of the softmax, mean over the rows; 0 in rows without the pair.",
    "weighted_attention": (
        "Weighted attention: the sum over the rows of attention times the length of the pair's product of vectors, "
        "divided by that sum over all pairs: how much of what is pooled is this pair."
    ),
}
_ADDED = "Effect: the standard deviation, over the rows, of what the pair adds to the logit."


def page_of(explanation: Explanation, schema: ResolvedSchema) -> Page:
    """Verdict, bars, tables, heat maps and single rows of an explanation."""
    title, where = "Which pairs of fields matter", f"{explanation.rows:,} rows of {explanation.split}"
    if explanation.row is not None:
        title, where = f"Why this score: row {explanation.row.number}", f"split {explanation.split}"
    page = Page(title, f"model {explanation.model}, schema {schema.spec.name}, {where}")
    if explanation.row is not None:
        page.section("The row")
        _row(page, explanation.row)
    add_trust(page, explanation)
    if explanation.pairs:
        add_pairs(page, explanation)
        page.section("All pairs by fields")
        add_map(page, explanation, schema)
    if explanation.requests:
        page.section("Single rows", "The first rows of the split, each with its strongest pairs.")
        for request in explanation.requests:
            assert request.row is not None
            page.heading(request.row.title)
            _pair_table(page, request, _OF_REQUEST)
    return page


def add_trust(page: Page, explanation: Explanation) -> None:
    """The section on how far attention weights may be trusted, and on what the model does not define."""
    page.section("How far the attention weights may be trusted")
    agreement = explanation.comparison
    if agreement is not None:
        page.paragraph(agreement.verdict())
        page.paragraph(agreement.figures())
        page.paragraph(
            f"The largest share of attention is {agreement.evenness:.2f} times the mean share: "
            + ("the weights hardly choose. " if agreement.evenness < 2 else "")
            + "Attention says how much of the pooling a pair gets, and not what that does to the score: a large "
            "share of a product that is near zero, or the same in all rows, does nothing. The effect is measured by "
            "taking the pair out. The interval treats pairs as independent, which pairs of shared fields are not, "
            "and all of this holds for this model and these rows."
        )
    for sentence in explanation.missing():
        page.paragraph(sentence)


def add_pairs(page: Page, explanation: Explanation) -> None:
    """The section of bars and tables of pairs, with the meaning of each figure."""
    page.section("The strongest pairs")
    page.figure(
        pictures.bars_figure(explanation, _TOP),
        f"The first {min(_TOP, len(explanation.pairs))} of {len(explanation.pairs):,} pairs.",
        "bars: effect, share of movement and share of attention of the strongest pairs",
    )
    _pair_table(page, explanation, _TOP)
    if len(explanation.pairs) > _TOP:
        _pair_table(page, explanation, _MOST, folded=True)
    if explanation.slots:
        page.paragraph(
            "A field that takes several values has a slot for each. Its pairs are taken out all at once; attention "
            "and contributions are sums over its slots. Each pair of slots on its own:"
        )
        _pair_table(page, replace(explanation, pairs=explanation.slots), _MOST, folded=True, what="pairs of slots")
    if explanation.row is None:
        words = {name: _WORDS[name] for name in columns(explanation) if name in _WORDS}
        if explanation.effect_of == "contribution":
            words["effect"] = _ADDED
        for text in words.values():
            page.paragraph(text)


def add_map(page: Page, explanation: Explanation, schema: ResolvedSchema) -> None:
    """The figure of all pairs as matrices of fields."""
    page.figure(
        pictures.heat_map_figure(explanation, schema),
        "A square is a pair of fields; pairs that take no part are white. Each matrix has its own scale.",
        "matrices of fields: shares of the movement of the logit and of attention",
    )


def _pair_table(page: Page, explanation: Explanation, top: int, folded: bool = False, what: str = "pairs") -> None:
    wanted, one = columns(explanation), explanation.row is not None
    pairs = explanation.pairs[:top]
    more = len(explanation.pairs) - len(pairs)
    caption = f"all {len(explanation.pairs):,} {what}" if not more else f"the first {len(pairs):,} {what}"
    page.table(
        ["rank", "pair", *wanted.values(), "present in"][: None if not one else -1],
        [
            [
                pair.rank,
                pair.name,
                *(cell(name, getattr(pair, name), one) for name in wanted),
                *([] if one else [cell("present", pair.present)]),
            ]
            for pair in pairs
        ],
        caption=caption if folded else "",
        numeric=["rank", *wanted.values(), "present in"],
        folded=folded,
    )


def _row(page: Page, row: RowFacts) -> None:
    page.facts(
        {
            "key": row.key,
            "label": None if row.label is None else f"{row.label:g}",
            "score": f"{row.score:.6f}",
            "logit": f"{row.logit:+.4f}",
            "bias": f"{row.bias:+.4f}",
            "single slots together": f"{sum(term for _, _, term in row.linear):+.4f}",
            "pairs together": f"{row.logit - row.bias - sum(term for _, _, term in row.linear):+.4f}",
        }
    )
    page.table(
        ["slot", "holds", "its own term"],
        [[name, content, f"{term:+.4f}"] for name, content, term in row.linear],
        caption=f"the {len(row.linear)} slots that are present, and what each adds by itself",
        numeric=["its own term"],
        folded=len(row.linear) > 12,
    )


def write(explanation: Explanation, schema: ResolvedSchema, folder: Path) -> Explanation:
    """Write ``pairs.*`` (or ``row-7.*``) into the folder: the same explanation with the names of the files.

    Raises:
        UserError: the folder cannot be written.
    """
    stem = "pairs" if explanation.row is None else f"row-{explanation.row.number}"
    contents = {f"{stem}.csv": tables.csv_of_pairs(explanation.pairs)}
    if explanation.slots:
        contents[f"{stem}-slots.csv"] = tables.csv_of_pairs(explanation.slots)
    if explanation.requests:
        contents[f"{stem}-requests.csv"] = tables.csv_of_requests(explanation.requests)
    if explanation.pairs:
        contents[f"{stem}-bars.png"] = png(pictures.bars_figure(explanation))
        contents[f"{stem}-map.png"] = png(pictures.heat_map_figure(explanation, schema))
    page = page_of(explanation, schema)
    with as_user_error(f"explain: cannot write to {folder}"):
        for name, content in contents.items():
            write_bytes(folder / name, content)
    contents_and_page = [*(folder / name for name in contents), page.write(folder / f"{stem}.html")]
    return replace(explanation, files=tuple(map(str, contents_and_page)))
