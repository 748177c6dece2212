"""The commands of docs/runners.md: every option is one of prepare's or known to Beam."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from typer.main import get_command

from afm_ctr.cli import commands as _registered  # noqa: F401
from afm_ctr.cli.app import app
from beam_jobs.runners import Engine


def commands(root: Path) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", (root / "docs" / "runners.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("afm-ctr prepare")]


def unknown_to_beam(options: list[str]) -> list[str]:
    unknown: list[str] = []
    PipelineOptions(options).get_all_options(
        add_extra_args_fn=lambda parser: unknown.extend(parser.parse_known_args(options)[1])
    )
    return unknown


def test_options_are_known(root: Path) -> None:
    found = commands(root)
    assert len(found) == 5
    prepare = get_command(app).commands["prepare"]  # type: ignore[attr-defined]
    runners = set()
    for words in found:
        context = prepare.make_context("prepare", words[2:])
        assert context.params["schema"] and context.params["output"] and context.params["input"]
        assert unknown_to_beam(context.args) == []
        engine = Engine(context.args)
        assert not engine.in_process
        told = re.findall(r"--(?:parallelism|max_num_workers)=(\d+)", " ".join(words))
        assert engine.workers == (int(told[0]) if told else None)
        runners.add(PipelineOptions(context.args).get_all_options()["runner"])
    assert runners == {"FlinkRunner", "PortableRunner", "DataflowRunner"}
    assert unknown_to_beam(["--flink_mastre=x"]) == ["--flink_mastre=x"]


@pytest.mark.parametrize("name", ["setup.py", "requirements/beam-workers.txt"])
def test_files_are_there(root: Path, name: str) -> None:
    assert (root / name).is_file() and name in (root / "docs" / "runners.md").read_text()
