"""``plan``, ``train``, ``evaluate``, ``predict``, ``export``, ``explain``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from afm_ctr.cli.app import JsonFlag, app, console, path_option, report, report_summary, say, working
from afm_ctr.cli.early import check_inputs, training_config
from afm_ctr.cli.quiet_imports import load_tensorflow
from afm_ctr.errors import UserError
from afm_ctr.io.inputs import input_files
from afm_ctr.visible import fitted, visible

ModelDir = Annotated[Path, path_option(help="Folder of the run: config, checkpoints, history.")]
Data = Annotated[Path, path_option(help="Prepared data set: the output of afm-ctr prepare.")]

Checkpoint = Annotated[Literal["best", "latest"], typer.Option(help="Which checkpoint of the run.")]


@app.command(
    "train",
    epilog="Example: horovodrun -np 2 afm-ctr train --data data --model-dir runs/afm "
    "--config examples/criteo/train.yaml --set epochs=2 --set model.factors=8",
)
def train(
    data: Data,
    model_dir: ModelDir,
    config: Annotated[
        Path | None,
        path_option(help="Training config, YAML. Default: that of the run continued, or one sized to the data."),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key.path=value, over the config.")] = None,
    resume: Annotated[
        Literal["auto", "never"],
        typer.Option(help="auto: resume where the folder stopped; never: refuse a used one."),
    ] = "auto",
    from_checkpoint: Annotated[
        Path | None, path_option(help="Begin with the weights of another run, or of one of its checkpoints.")
    ] = None,
    profile: Annotated[
        int, typer.Option(min=0, help="Profile this many steps: TensorBoard's trace, and where a step's time goes.")
    ] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Train a model; under horovodrun on all ranks. The same command, run again, resumes where it stopped."""
    check_inputs(data=data, config=config, origin=from_checkpoint)
    settings = training_config(model_dir, config, set_ or [], from_checkpoint)
    sized = settings is None
    if config is None and from_checkpoint is not None and not sized and not (model_dir / "config.yaml").is_file():
        _note(f"settings are those of {from_checkpoint}; --config names others")
    load_tensorflow()
    from afm_ctr import distributed, training

    world = distributed.init()
    try:
        if settings is None:  # sizing reads rows with TensorFlow: only now that this rank has its GPU
            settings = training.default_config(data, model_dir, from_checkpoint, set_ or [])
        summary = training.train(
            data,
            model_dir,
            settings,
            world,
            resume=resume,
            from_checkpoint=from_checkpoint,
            command=sys.argv[1:],
            profile=profile,
        )
    finally:
        world.shutdown()
    if sized:
        _note(f"settings sized to the data, kept in {model_dir / 'config.yaml'}; --config names your own")
    report_summary(as_json, summary)


def _note(text: str) -> None:
    if os.environ.get("HOROVOD_RANK", "0") == "0":
        print(fitted(visible(text), sys.stderr), file=sys.stderr, flush=True)


@app.command(
    "plan",
    epilog="Example: afm-ctr plan --data data --config train.yaml --hosts 4 --gpus-per-host 8 --gbits 100 "
    "--memory-gb 80",
)
def plan(
    data: Data,
    config: Annotated[Path | None, path_option(help="Training config, YAML. Default: one sized to the data.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key.path=value, over the config.")] = None,
    hosts: Annotated[int, typer.Option(min=1, help="How many hosts.")] = 1,
    gpus_per_host: Annotated[int, typer.Option(min=1, help="Ranks per host, one per GPU.")] = 1,
    gbits: Annotated[float, typer.Option(min=0.001, help="Speed of a host's link, Gbit/s.")] = 10.0,
    memory_gb: Annotated[
        float | None, typer.Option(help="Memory per rank, GB. Default: this machine's by GPUs per host.")
    ] = None,
    ids: Annotated[
        int | None, typer.Option(min=1, help="Plan for this number of ids instead of the schema's.")
    ] = None,
    rows_per_second: Annotated[
        float | None,
        typer.Option(min=1, help="Speed of a single rank; see history.jsonl of a run. Default: 50,000."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Estimate a run on a cluster: memory, bytes and time per step, for each form of the table."""
    check_inputs(data=data, config=config)
    settings = training_config(data, config, set_ or [])
    load_tensorflow()
    from afm_ctr import training
    from afm_ctr.training import plan as planning

    settings = settings or training.default_config(data, data, overrides=set_ or [])
    memory = round(memory_gb * 1e9) if memory_gb else planning.rank_memory(settings, gpus_per_host)
    speed = rows_per_second or planning.ROWS_PER_SECOND
    found = planning.plan_run(data, settings, planning.Cluster(hosts, gpus_per_host, gbits, memory, speed), ids)

    def show() -> None:
        asked = found.table
        say(
            f"{asked.rows:,} ids of {asked.width} numbers, {asked.slot_numbers} more of the optimizer; {hosts} "
            f"hosts, {found.cluster.ranks} ranks of {memory / 1e9:,.1f} GB, {gbits:g} Gbit/s; a rank reads "
            f"{asked.touched:,} distinct ids of {asked.local_batch:,} rows per step"
        )
        table = Table("a rank", *found.costs, title_justify="left")
        for name, value in _COSTS.items():
            table.add_row(name, *(value(cost) for cost in found.costs.values()))
        console.print(table)
        console.print(f"auto: {found.chosen}")

    report(as_json, found.to_json(), show)


_COSTS: dict[str, Callable[[Any], str]] = {
    "weights, GB": lambda cost: f"{cost.weights / 1e9:,.3f}",
    "optimizer slots, GB": lambda cost: f"{cost.slots / 1e9:,.3f}",
    "activations and buffers, GB (about)": lambda cost: f"{cost.buffers / 1e9:,.3f}",
    "sent per step, MB": lambda cost: f"{cost.sent / 1e6:,.2f}",
    "exchange per step, ms (model)": lambda cost: f"{cost.exchange_seconds * 1e3:,.2f}",
    "step, ms (model)": lambda cost: f"{cost.step_seconds * 1e3:,.2f}",
    "largest table, million ids": lambda cost: f"{cost.largest_rows / 1e6:,.1f}",
}


@app.command("evaluate", epilog="Example: afm-ctr evaluate --data data --split test --model-dir runs/afm --json")
def evaluate(
    data: Data,
    model_dir: ModelDir,
    split: Annotated[str, typer.Option(help="Which split.")] = "test",
    checkpoint: Checkpoint = "best",
    as_json: JsonFlag = False,
) -> None:
    """Exact AUC, group AUC, log loss, RMSE and calibration of a split, over all ranks."""
    check_inputs(data=data, run=model_dir)
    load_tensorflow()
    from afm_ctr import distributed, training

    world = distributed.init()
    try:
        metrics = training.evaluate(data, split, model_dir, world, which=checkpoint)
    finally:
        world.shutdown()

    def show() -> None:
        console.print(f"{model_dir} on {split}", markup=False)
        table = Table(show_header=False)
        for name, value in metrics.items():
            unweighted = name == "weight" and value == metrics["rows"]
            if (isinstance(value, (int, float, str)) or value is None) and not unweighted:
                table.add_row(name, _number(value))
        console.print(table)
        for text in metrics["warnings"]:
            say(f"warning: {text}")

    report(as_json, metrics, show)


@app.command(
    "predict", epilog="Example: afm-ctr predict --model-dir runs/afm --input 'new/*.tsv' --output scores.jsonl"
)
def predict(
    model_dir: ModelDir,
    output: Annotated[Path, path_option(help="JSON Lines file to write or replace: one object per row, in order.")],
    data: Annotated[Path | None, path_option(help="Prepared data set ...")] = None,
    split: Annotated[str, typer.Option(help="... and its split.")] = "test",
    input: Annotated[list[str] | None, typer.Option(help="Or raw logs: paths or globs.")] = None,
    checkpoint: Checkpoint = "best",
    as_json: JsonFlag = False,
) -> None:
    """Score prepared records or raw logs without a server; keys are carried through."""
    if (data is None) == (not input):
        raise UserError("predict: give either --data DIR (with --split) or --input GLOB")
    check_inputs(data=data, run=model_dir)
    input_files(input or [])
    load_tensorflow()
    from afm_ctr.prediction import predict

    with working(f"scoring into {output}"):
        summary = predict(model_dir, output, data=data, split=split, inputs=input, which=checkpoint)
    report_summary(as_json, summary)


@app.command("export", epilog="Example: afm-ctr export --model-dir runs/afm --export-base serving-models/afm")
def export(
    model_dir: ModelDir,
    export_base: Annotated[Path, path_option(help="Base folder of the versions, as TF Serving expects it.")],
    version: Annotated[int | None, typer.Option(min=1, help="Version number; default: the next free one.")] = None,
    checkpoint: Checkpoint = "best",
    warmup: Annotated[
        Literal["made-up", "log", "none"],
        typer.Option(help="Rows of the warm-up requests: made up, or real ones of the log, or no requests."),
    ] = "made-up",
    float16_tables: Annotated[
        bool, typer.Option("--float16-tables", help="Store the vectors in half precision: half the memory.")
    ] = False,
    data: Annotated[
        Path | None, path_option(help="With --float16-tables: measure what it changes on this data set ...")
    ] = None,
    split: Annotated[str, typer.Option(help="... and this split of it.")] = "test",
    largest_table_mb: Annotated[
        float, typer.Option(min=0, help="A larger table is written block by block and never held as a whole.")
    ] = 1000.0,
    as_json: JsonFlag = False,
) -> None:
    """Write a SavedModel with the signatures serving_default, examples, raw and explain."""
    if data is not None and not float16_tables:
        raise UserError("export: --data needs --float16-tables: it measures the effect of that")
    check_inputs(data=data, run=model_dir)
    load_tensorflow()
    from afm_ctr import export as exporting

    with working("exporting"):
        summary = exporting.export_model(
            model_dir,
            export_base,
            version=version,
            which=checkpoint,
            warmup=warmup,
            float16_tables=float16_tables,
            data_dir=data,
            split=split,
            largest_table_mb=largest_table_mb,
        )
    report_summary(as_json, summary)


@app.command(
    "validate-export",
    epilog="Example: afm-ctr validate-export --export-dir serving-models/afm/1 --model-dir runs/afm",
)
def validate_export(
    export_dir: Annotated[Path, path_option(help="One version: a folder that afm-ctr export wrote.")],
    model_dir: Annotated[
        Path | None, path_option(help="The run that was exported: compare scores with the checkpoint's.")
    ] = None,
    checkpoint: Checkpoint = "best",
    as_json: JsonFlag = False,
) -> None:
    """Load an export in a new process and check everything it promises; exit 2 names the first check that fails."""
    check_inputs(run=model_dir)
    load_tensorflow()
    from afm_ctr import export as exporting

    with working("validating"):
        found = exporting.validate_export(export_dir, model_dir, checkpoint)

    def show() -> None:
        words = {True: "[green]ok[/green]", False: "[red]FAILED[/red]", None: "-"}
        table = Table("check", "", "found", title=found.folder, title_justify="left")
        for check in found.checks:
            table.add_row(check.name, words[check.passed], escape(check.detail))
        console.print(table)

    report(as_json, found.to_json(), show)
    if found.failed is not None:
        raise UserError(f"validate-export: {found.folder}: {found.failed.name}: {found.failed.detail}")


@app.command("explain", epilog="Example: afm-ctr explain --model-dir runs/afm --data data --output explain/ --row 7")
def explain(
    model_dir: ModelDir,
    data: Data,
    split: Annotated[str, typer.Option(help="Which split.")] = "test",
    row: Annotated[int | None, typer.Option(min=0, help="Explain this row of the split only.")] = None,
    rows: Annotated[
        int | None, typer.Option(help="Also explain this many of the split's first rows one by one; default 5.")
    ] = None,
    output: Annotated[
        Path | None, path_option(help="Folder for the tables, the pictures, and one HTML page with all of them.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many pairs to print.")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Which field pairs matter: attention share, what the logit loses without the pair, and how far they agree."""
    if row is not None and rows is not None:
        raise UserError("explain: --row explains one row only, --rows some and the whole split: give one of them")
    check_inputs(data=data, run=model_dir)
    load_tensorflow()
    from afm_ctr import explain as explaining

    requests = 0 if row is not None else 5 if rows is None else rows
    with working("explaining"):
        found = explaining.explain(model_dir, data, split=split, row=row, output=output, requests=requests)
    report(as_json, found.to_json(top), lambda: console.print(explaining.table(found, top)))


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
