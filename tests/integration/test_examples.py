"""Every example's README, command by command, on the first lines of its data."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
import shlex
import shutil
from itertools import islice
from pathlib import Path

import pytest

from afm_ctr.cli import commands  # noqa: F401  (registers the sub-commands)
from afm_ctr.cli.app import app
from afm_ctr.records import Manifest
from afm_ctr.synthetic import make_logs
from serving.server.app import LocalServer
from serving.server.flags import parse

EXAMPLES = ["avazu", "criteo", "frappe", "movielens-100k", "telco"]
LINES = 1500
WHOLE = ("u.user", "u.item")  # tables, which are joined to lines of the log
SMALL = ["--set", "epochs=1", "--set", "model.factors=4", "--set", "model.attention=4", "--set", "batch_size=256"]


def commands_of(readme: Path) -> list[list[str]]:
    """The commands in the page's code blocks, cut like a shell would."""
    blocks = re.findall(r"```bash\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").replace("$PWD", os.getcwd()).splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def copy_lines(source: Path, target: Path) -> None:
    """The first lines of a log, compressed as it is."""
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rb") as lines, opened(target, "wb") as first:
        first.writelines(islice(lines, None if source.name in WHOLE else LINES))


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A project's folder with the example, beside a folder of data that holds the beginning of the real one."""
    name: str = request.param
    shutil.copytree(root / "examples" / name, tmp_path / "project/examples" / name)
    data, real = tmp_path / "shared/data" / name, root.parent / "shared/data" / name
    data.mkdir(parents=True)
    if real.is_dir():
        for source in real.iterdir():
            if source.name not in ("README", "LICENSE-README.txt"):
                copy_lines(source, data / source.name)
    elif name == "criteo":
        make_logs(data / "criteo_120k.tsv.gz", LINES, seed=1)
    else:
        pytest.skip(f"../shared/data/{name} is not here and may not be redistributed")
    monkeypatch.chdir(tmp_path / "project")
    return name


def test_the_commands_of_the_readme(example: str) -> None:
    steps = commands_of(Path("examples", example, "README.md"))
    assert [step[:2] for step in steps] == [
        ["afm-ctr", name] for name in ("prepare", "train", "export", "serve", "score")
    ]
    prepare, train, export, serve, score = (step[2:] for step in steps)
    app(["prepare", *prepare], standalone_mode=False)
    app(["train", *train, *SMALL], standalone_mode=False)
    app(["export", *export], standalone_mode=False)

    manifest = Manifest.load(f"data/{example}")
    assert manifest.rows_in == manifest.rows_out > 0.9 * LINES
    assert manifest.splits["valid"] > 0
    assert Path("serving-models", example, "1", "saved_model.pb").exists()

    assert serve[-1] == "&"
    flags = parse(serve[:-1])
    assert flags.port == 8500
    with LocalServer(dataclasses.replace(flags, port=0), "127.0.0.1") as server:  # any port that is free
        place = score.index("localhost:8500")
        score[place] = f"127.0.0.1:{server.grpc_port}"
        app(["score", *score], standalone_mode=False)
    answers = [json.loads(line) for line in Path(f"{example}.jsonl").read_text().splitlines()]
    header = example in ("avazu", "telco")
    assert len(answers) == LINES - header
    assert not [answer for answer in answers if "error" in answer or answer["bad_cells"]]
    assert len({answer["probability"] for answer in answers}) > LINES / 20
    assert all(0 < answer["probability"] < 1 for answer in answers)


def test_every_example_has_its_page(root: Path) -> None:
    folders = sorted(
        path.name for path in (root / "examples").iterdir() if path.is_dir() and path.name != "notebooks"
    )
    assert folders == EXAMPLES
    for name in folders:
        assert {"README.md", "schema.yaml", "train.yaml"} <= {
            path.name for path in (root / "examples" / name).iterdir()
        }
