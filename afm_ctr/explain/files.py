"""An explanation as files: tables, pictures, and one page with all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from afm_ctr.errors import UserError
from afm_ctr.explain import pictures, tables
from afm_ctr.explain.explanation import Explanation
from afm_ctr.explain.page import page_of
from afm_ctr.io.files import write_bytes
from afm_ctr.plots import png
from afm_ctr.schema import ResolvedSchema


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
    try:
        for name, content in contents.items():
            write_bytes(folder / name, content)
    except OSError as error:
        raise UserError(f"explain: cannot write to {folder}: {error.strerror or error}") from error
    contents_and_page = [*(folder / name for name in contents), page.write(folder / f"{stem}.html")]
    return replace(explanation, files=tuple(map(str, contents_and_page)))
