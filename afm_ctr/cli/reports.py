"""``report``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from afm_ctr.cli.app import JsonFlag, app, console, path_option, say
from afm_ctr.cli.app import report as show_result
from afm_ctr.cli.early import check_inputs
from afm_ctr.cli.model import Checkpoint, ModelDir
from afm_ctr.cli.progress import row_progress
from afm_ctr.cli.quiet_imports import load_tensorflow
from afm_ctr.errors import UserError


@app.command("report", epilog="Example: afm-ctr report --model-dir runs/afm --data data --slices C1 --slices I5")
def report(
    model_dir: ModelDir,
    data: Annotated[
        Path | None, path_option(help="Prepared data set; default: the one that the run was trained on.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which split; default: test, or else the validation's.")] = None,
    output: Annotated[
        Path | None, path_option(help="The page to write or replace; default: report.html in MODEL_DIR.")
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Slice by this field; may be given several times. Default: by all."),
    ] = None,
    baseline: Annotated[
        Path | None, path_option(metavar="RUN", help="Run to compare with on the same rows, such as one of lr.")
    ] = None,
    checkpoint: Checkpoint = "best",
    as_json: JsonFlag = False,
) -> None:
    """Write one HTML page about a run, finished or under way: curves, metrics with intervals, slices, explanations.

    The page needs no network and no script. It names what is missing for lack of data or labels.
    """
    if int(os.environ.get("HOROVOD_SIZE", "1")) > 1:
        raise UserError("report works in one process: run it without horovodrun")
    check_inputs(data=data, run=model_dir)
    check_inputs(run=baseline)
    load_tensorflow()
    from afm_ctr import report as reporting
    from afm_ctr.report.quality import shown_all

    with row_progress("report") as progress:
        summary = reporting.report(
            model_dir, data, split, output, slices=slices, baseline=baseline, which=checkpoint, progress=progress
        )

    def show() -> None:
        if summary.verdict:
            say(summary.verdict)
        if summary.metrics:
            console.print(f"{model_dir} on {summary.split}", markup=False)
            table = Table("", "", "95 % interval")
            for name, cells in shown_all(summary.metrics).items():
                table.add_row(name, *cells)
            console.print(table)
        for text in summary.warnings:
            say(f"warning: {text}")
        say(f"wrote {summary.output}")

    show_result(as_json, summary.to_json(), show)
