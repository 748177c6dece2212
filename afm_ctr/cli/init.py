"""``init``."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afm_ctr.cli.app import JsonFlag, app, path_option, report, say, working
from afm_ctr.cli.quiet_imports import load_tensorflow
from afm_ctr.errors import UserError

if TYPE_CHECKING:
    from afm_ctr.infer import Inference

SCHEMA, CONFIG = "schema.yaml", "train.yaml"


@app.command("init", epilog="Example: afm-ctr init --input 'logs/*.csv.gz' --output shop --label click")
def init(
    input: Annotated[list[str], typer.Option(help="Raw logs: local paths or globs.")],
    output: Annotated[Path, path_option(help=f"Folder for {SCHEMA} and {CONFIG}.")] = Path("."),
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The label's column; without a header line c1, c2, …")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the data set is called; default: after the file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the two files.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Look at a sample of raw logs; write a schema, a training config sized to them, and the next six commands."""
    schema, config = output / SCHEMA, output / CONFIG
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder")
    for path in (schema, config):
        if path.exists() and not overwrite:
            raise UserError(f"{path} is there already; give --overwrite to replace it, or another --output")
    from afm_ctr import infer
    from afm_ctr.io.files import as_user_error, write_text
    from afm_ctr.sizing import settings_for

    with working("looking at the logs"):
        try:
            found = infer.infer_schema(input, label=label, name=name)
        except UserError as error:
            raise UserError(infer.labelled_advice(error)) from error
    with working("trying penalties on them"):
        encodes = importlib.util.find_spec("tensorflow") is not None
        if encodes:
            load_tensorflow(keras=False)
        settings = settings_for(found.size(tried=encodes))
    with as_user_error(f"{output}: cannot be written"):
        output.mkdir(parents=True, exist_ok=True)
        infer.save(found, schema, overwrite)
        write_text(config, _HEAD + settings.to_yaml())
    steps = next_steps(found, input, output)

    def show() -> None:
        columns = [column for column in found.columns if column["odd"]]
        for column in columns:
            say(f"{column['name']}: {'; '.join(column['odd'])}")
        chosen = settings.content
        say(
            f"wrote {schema} (from {found.rows:,} rows) and {config} ({chosen['model']['name']}, batches of "
            f"{chosen['batch_size']:,}); read both, then:\n"
        )
        say("\n".join(steps))

    result = {"schema": str(schema), "config": str(config), "settings": settings.content, "next": steps}
    report(as_json, result | {"rows": found.rows, "total": found.total, "columns": found.columns}, show)


_HEAD = """\
# Training settings sized to the data by afm-ctr init: a start, to be changed as figures come in.
# Every key: docs/reference.md. One run with another value: afm-ctr train … --set batch_size=1024

"""


def next_steps(found: Inference, inputs: list[str], folder: Path) -> list[str]:
    """The commands from the logs to a scored row, quoted for the shell."""
    model = re.sub(r"[^A-Za-z0-9_-]+", "-", found.schema.name).strip("-") or "model"
    data, run, served = str(folder / "data"), str(folder / "run"), folder.resolve() / "served" / model
    return [
        found.command(inputs, folder / SCHEMA, data),
        shlex.join(["afm-ctr", "train", "--data", data, "--model-dir", run, "--config", str(folder / CONFIG)]),
        shlex.join(["afm-ctr", "evaluate", "--data", data, "--split", "test", "--model-dir", run]),
        shlex.join(["afm-ctr", "export", "--model-dir", run, "--export-base", str(served)]),
        shlex.join(["afm-ctr", "serve", f"--model_name={model}", f"--model_base_path={served}", "--port=8500"])
        + " &",
        shlex.join(
            ["afm-ctr", "score", "--target", "localhost:8500", "--wait", "60", "--model-name", model]
            + ["--schema", str(folder / SCHEMA), "--input", found.first, "--output", str(folder / "scores.jsonl")]
        ),
    ]
