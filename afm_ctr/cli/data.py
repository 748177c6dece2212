"""``make-logs``, ``prepare``, ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from afm_ctr.cli.app import JsonFlag, app, console, path_option, report, report_summary, say, working
from afm_ctr.cli.progress import row_progress
from afm_ctr.cli.quiet_imports import load_beam, load_tensorflow
from afm_ctr.devices import hide_gpus
from afm_ctr.errors import UserError
from afm_ctr.visible import counted


@app.command("make-logs", epilog="Example: afm-ctr make-logs --rows 200000 --output logs.tsv.gz --malformed 0.001")
def make_logs(
    rows: Annotated[int, typer.Option(min=1, help="Number of lines.")],
    output: Annotated[Path, path_option(help="File to write; .gz is compressed.")],
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    malformed: Annotated[float, typer.Option(min=0, max=1, help="Share of malformed lines.")] = 0.0,
    as_json: JsonFlag = False,
) -> None:
    """Write a Criteo-shaped log with planted field pairs that matter, for trying everything out."""
    from afm_ctr import synthetic

    with working(f"writing {rows:,} rows to {output}"):
        summary = synthetic.make_logs(output, rows, seed=seed, malformed=malformed)
    report_summary(as_json, summary)


@app.command(
    "prepare",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: afm-ctr prepare --schema examples/criteo/schema.yaml --input 'logs/*.tsv.gz' --output data "
    "--split tail:0.1/0.1 --direct_num_workers=2 --direct_running_mode=multi_processing",
)
def prepare(
    context: typer.Context,
    schema: Annotated[Path, path_option(help="The feature schema, YAML.")],
    output: Annotated[str, typer.Option(help="Folder of the prepared data set.")],
    input: Annotated[
        list[str] | None, typer.Option(help="Raw logs: paths or globs. Left out with --split files:…")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="hash:COLUMN:80/10/10 | tail:0.1/0.1 | column:NAME | "
            "files:train=GLOB,valid=GLOB,test=GLOB | index:FILE"
        ),
    ] = None,
    no_label: Annotated[bool, typer.Option("--no-label", help="The logs carry no label.")] = False,
    parent: Annotated[
        Path | None, path_option(help="Earlier data set, or its schema.yaml: its ids stay, new ones are appended.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the data set in OUTPUT.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the order of rows in a shard.")] = 0,
    compression: Annotated[
        Literal["none", "gzip"], typer.Option(help="Compression of the shards; gzip has no random access.")
    ] = "none",
    chunk_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a plain file in one shard.")] = 8 << 20,
    chunk_lines: Annotated[
        int, typer.Option(min=1, help="Lines of a compressed file, or rows of a Parquet file, in one shard.")
    ] = 32_768,
    max_reject_share: Annotated[
        float, typer.Option(min=0, max=1, help="Fail, and publish nothing, when a larger share of rows is rejected.")
    ] = 0.01,
    max_rejects_kept: Annotated[
        int, typer.Option(min=0, help="Rejected lines kept per reason; all are counted.")
    ] = 10_000,
    sample_rows: Annotated[
        int, typer.Option(min=0, help="Raw rows kept for warming up a server, also in runs and exports; 0: none.")
    ] = 16,
    as_json: JsonFlag = False,
) -> None:
    """Turn raw logs into sharded TFRecords with Apache Beam. Further options are Beam's.

    Without one it runs on this machine, in two threads if there are two cores and enough rows; see docs/runners.md.
    """
    hide_gpus()
    load_beam(context.args)
    from beam_jobs import PrepareOptions
    from beam_jobs import prepare as run

    with row_progress("prepare") as progress:
        summary = run(
            PrepareOptions(
                schema=str(schema),
                inputs=input or [],
                output=output,
                split=split,
                labelled=not no_label,
                parent_schema=None if parent is None else str(parent),
                overwrite=overwrite,
                seed=seed,
                compression=compression,
                chunk_bytes=chunk_bytes,
                chunk_lines=chunk_lines,
                max_reject_share=max_reject_share,
                max_rejects_kept=max_rejects_kept,
                sample_rows=sample_rows,
                beam_args=list(context.args),
                progress=progress,
                load_tensorflow=lambda: load_tensorflow(keras=False),
            )
        )

    result = summary.to_json()

    def show() -> None:
        console.print(f"{output}: {result['rows_in']:,} rows in, {result['rows_out']:,} out", markup=False)
        table = Table()
        for heading in ("split", "rows", "positives"):
            table.add_column(heading, justify="left" if heading == "split" else "right")
        for name, counts in result["splits"].items():
            table.add_row(name, f"{counts['rows']:,}", f"{counts['positives']:,}")
        for reason, count in result["rejects"].items():
            kept = result["rejects_kept"][reason]
            note = "" if kept == count else f" ({kept:,} kept)"
            table.add_row(f"rejected: {reason}{note}", f"{count:,}", "", style="yellow")
        if result["sampled_out"]:
            table.add_row("sampled out", f"{result['sampled_out']:,}", "0")
        for name, cut in result["cut"].items():
            note = f"cut: {cut['values']:,} values of {name} beyond max_values"
            table.add_row(note, f"{cut['rows']:,}", "", style="yellow")
        console.print(table)
        rate = result["rows_in"] / max(result["seconds"], 1e-3)
        console.print(
            f"schema {result['schema_id']}, {result['feature_size']:,} ids; {result['bytes'] / 1e6:,.1f} MB in "
            f"{counted(result['shards'], 'shard')}; {result['seconds']:.1f} s, {rate:,.0f} rows/s"
        )
        if any(result["rejects_kept"].values()):
            say(f"rejected lines, each with its reason: {output.rstrip('/')}/rejects")

    report(as_json, result, show)


@app.command("doctor", epilog="Example: afm-ctr doctor --json")
def doctor(as_json: JsonFlag = False) -> None:
    """Report what is installed, what is missing and how to fix it, and whether Horovod fits TensorFlow."""
    from afm_ctr import doctor as examination

    with working("loading TensorFlow and Horovod"):
        findings = examination.examine()
    table = Table(box=None)
    for heading in ("", "what", "state", "fix it with"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[yellow]--[/]" if finding.optional else "[red]no[/]"
        table.add_row(mark, escape(finding.what), escape(finding.state), escape(finding.remedy))
    result = examination.as_json(findings)

    def show() -> None:
        console.print(table)
        if any(finding.remedy for finding in findings):
            console.print("run these commands in the project's folder, with this Python's pip and python")

    report(as_json, result, show)
    if not result["ok"]:
        broken = next(f for f in findings if not (f.ok or f.optional))
        raise UserError(f"{broken.what}: {broken.state}; fix it with: {broken.remedy}")
