"""``infer-schema`` and ``stats``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from afm_ctr.cli.app import JsonFlag, app, console, on_this_machine, path_option, report, say, working
from afm_ctr.errors import UserError
from afm_ctr.visible import counted, visible

if TYPE_CHECKING:  # --help must not import NumPy and pydantic
    from afm_ctr.statistics import DataStatistics, Drift

PAGE = "statistics.html"


@app.command(
    "infer-schema", epilog="Example: afm-ctr infer-schema --input 'logs/*.csv.gz' --output schema.yaml --label click"
)
def infer_schema(
    input: Annotated[list[str], typer.Option(help="Raw logs: local paths or globs.")],
    output: Annotated[Path | None, path_option(help="File to write; without it the schema is printed.")] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The label's column; without a header line c1, c2, …")
    ] = None,
    no_label: Annotated[bool, typer.Option("--no-label", help="The logs carry no label.")] = False,
    name: Annotated[str | None, typer.Option(help="What the data set is called; default: after the file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Look at a sample of raw logs and write a first schema: every suggestion with the figures behind it."""
    if label is not None and no_label:
        raise UserError("infer-schema: give --label or --no-label, not both")
    if output is not None and output.exists() and not overwrite:
        raise UserError(f"{output} is there already; give --overwrite to replace it, or another --output")
    from afm_ctr import infer

    with working("looking at the logs"):
        found = infer.infer_schema(input, label=label, labelled=not no_label, name=name)
    if output is not None:
        infer.save(found, output, overwrite)

    def show() -> None:
        if output is None:
            if not as_json:
                say(found.text, end="")
            return
        table = Table("column", "suggested", "distinct", "missing", "own AUC", "look at this", box=SIMPLE_HEAD)
        for column in found.columns:
            suggested = column["suggested"]
            table.add_row(
                escape(column["name"]),
                _suggested(suggested) if suggested is not None else "[yellow]left out[/]",
                f"{column['distinct']:,}" if "distinct" in column else "",
                f"{column['missing']:.1%}" if column.get("missing") else "",
                f"{column['auc']:.2f}" if column.get("auc") is not None else "",
                escape("; ".join(column["odd"])),
            )
        console.print(table)
        files = f"{found.looked_at} of {counted(found.files, 'file')}"
        say(f"{output}: from {found.rows:,} rows of {files}; read it, then " + found.command(input, output))

    result = found.to_json() | {"output": None if output is None else str(output)}
    if output is not None:
        result["next"] = found.command(input, output)
    report(as_json, result, show)


def _suggested(fields: Any) -> str:
    words = []
    for field in fields if isinstance(fields, list) else [fields]:
        encoding = field.get("encoding", {})
        more = [f"{key} {value}" for key, value in encoding.items() if key != "kind" and value is not True]
        words.append(" ".join([encoding.get("kind") or field.get("part") or field["kind"], *more]))
    return escape(", ".join(words))


@app.command("stats", epilog="Example: afm-ctr stats --data data --baseline last-week/data --output stats/")
def stats(
    data: Annotated[Path | None, path_option(metavar="DATA", help="Prepared data set, or its manifest.json.")] = None,
    baseline: Annotated[
        Path | None, path_option(metavar="MANIFEST", help="Manifest or folder of a data set to compare with.")
    ] = None,
    output: Annotated[Path | None, path_option(help=f"Folder for one HTML page with pictures, {PAGE}.")] = None,
    as_json: JsonFlag = False,
    named: Annotated[
        Path | None,
        typer.Argument(parser=on_this_machine, metavar="DATA", help="The same as --data.", show_default=False),
    ] = None,
) -> None:
    """Show the statistics of every field of a prepared data set, and how far they have moved from another's.

    By convention PSI below 0.1 is no change, above 0.25 a large one; flagged fields come first. Always exit code 0.
    """
    if (data is None) == (named is None):
        raise UserError("stats: name one data set, as in afm-ctr stats --data data")
    data = data or named
    assert data is not None
    from afm_ctr.statistics import drift

    now = _statistics(data)
    before = _statistics(baseline) if baseline is not None else None
    found = drift(now, before) if before is not None else None
    page = None
    if output is not None:
        from afm_ctr.statistics.page import page_of

        versus = None if before is None or found is None else (str(baseline), before, found)
        page = page_of(str(data), now, versus, _parts(data)).write(output / PAGE)

    def show() -> None:
        console.print(_table(data, now))
        if found is not None:
            console.print(_drift_table(found, baseline))
        if page is not None:
            say(f"wrote {page}")

    result: dict[str, Any] = {"data": str(data), "statistics": now.model_dump(mode="json")}
    if found is not None:
        result |= {"baseline": str(baseline), "drift": found.to_json(), "flagged": [f.name for f in found.flagged]}
    if page is not None:
        result["plots"] = str(page)
    report(as_json, result, show)


def _folder(path: Path) -> Path:
    from afm_ctr.records.manifest import MANIFEST_NAME

    return path.parent if path.name == MANIFEST_NAME else path


def _parts(path: Path) -> dict[str, str]:
    """The part of the moment of each time field, if the schema is next to the manifest."""
    from afm_ctr.schema import ResolvedSchema, TimeField

    try:
        fields = ResolvedSchema.load(_folder(path)).spec.fields
    except UserError:
        return {}
    return {field.name: field.part for field in fields if isinstance(field, TimeField)}


def _statistics(path: Path) -> DataStatistics:
    from afm_ctr.records.manifest import Manifest

    found = Manifest.load(_folder(path), check_files=False).statistics
    if found is None:
        raise UserError(
            f"{path}: its manifest has no statistics: an earlier afm-ctr wrote it; prepare the data again"
        )
    return found


def _table(data: Path, statistics: DataStatistics) -> Group:
    from afm_ctr.statistics.tables import FIELD_COLUMNS, field_rows, note_of, title_of

    table = _columns(FIELD_COLUMNS, caption=note_of(statistics), caption_justify="left")
    for row in field_rows(statistics):
        table.add_row(*map(escape, row))
    return Group(Text(visible(f"{data}, {title_of(statistics)}")), table)


def _drift_table(found: Drift, baseline: Path | None) -> Group:
    from afm_ctr.statistics.tables import DRIFT_COLUMNS, drift_row, drift_title

    table = _columns(DRIFT_COLUMNS)
    for field in found.fields:
        style = "bold red" if "large change" in field.flags else "yellow" if field.flags else None
        table.add_row(*map(escape, drift_row(field)), style=style)
    return Group(Text(visible(drift_title(found, str(baseline)))), table)


def _columns(headings: Sequence[str], **options: Any) -> Table:
    from afm_ctr.statistics.tables import TEXT_COLUMNS

    table = Table(box=SIMPLE_HEAD, **options)
    for heading in headings:
        left = heading in TEXT_COLUMNS
        table.add_column(heading, justify="left" if left else "right", overflow="fold" if left else "ellipsis")
    return table
