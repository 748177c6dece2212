"""Code of README and of pages, run as it stands: with small data in the reader's place, and other ports.

What else is shown: tests/unit/test_docs.py (every command and import of every page), test_outside.py (plugins.md),
test_examples.py (examples/), tests/unit/test_reference.py (reference.md).
"""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from served import local_server

from afm_ctr.export import export_model
from afm_ctr.records.manifest import Manifest
from tests.integration.conftest import Walk

PORTS = ("8500", "8501")


def blocks(page: Path, language: str, heading: str) -> list[str]:
    """The fenced blocks of a language below a heading."""
    (section,) = re.findall(rf"^#+ {heading}\n(.*?)(?=^#+ |\Z)", page.read_text("utf-8"), re.M | re.S)
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


def free_ports() -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def bash(script: str, folder: Path) -> tuple[int, str]:
    """Run a script; whatever it started in the background ends with it."""
    log = folder / "printed.txt"
    with log.open("w") as stream:
        command = ["bash", "-e", "-c", script]
        process = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream, start_new_session=True)
        try:
            code = process.wait(timeout=600)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return code, log.read_text()


def shop_rows(count: int, seed: int) -> list[str]:
    """user, item, price, clicked: cheap items are clicked more; some cells are empty."""
    pick = random.Random(seed)
    lines = []
    for _ in range(count):
        user, item = f"u{pick.randrange(50)}", pick.choice(["", *(f"i{n}" for n in range(20))])
        price = pick.choice(["", f"{pick.uniform(1, 100):.2f}"])
        clicked = int(pick.random() < (0.6 if price and float(price) < 30 else 0.2))
        lines.append(f"{user},{item},{price},{clicked}")
    return lines


def test_the_path_on_your_own_logs(root: Path, tmp_path: Path) -> None:
    """Every command of README's section and of what follows training, then the client against the server of README.

    Then the schema of docs/prepare.md, which is written by hand, on the same logs.
    """
    build, serve = blocks(root / "README.md", "sh", "On your own logs")
    (look,) = blocks(root / "docs/training.md", "sh", "Look at the result")
    (schema,) = blocks(root / "docs/prepare.md", "yaml", "The schema")
    client = blocks(root / "docs/serving.md", "python", "The client")[0]
    (tmp_path / "by-hand.yaml").write_text(schema)
    (tmp_path / "logs").mkdir()
    header = "user,item,price,clicked"
    for number in range(2):
        with gzip.open(tmp_path / f"logs/day-{number}.csv.gz", "wt") as stream:
            stream.write("\n".join([header, *shop_rows(400, number)]) + "\n")
    new = [line.rpartition(",")[0] for line in [header, *shop_rows(30, 9)]]
    (tmp_path / "new.csv").write_text("\n".join(new) + "\n")
    (tmp_path / "examples").symlink_to(root / "examples")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    last = client.rstrip().splitlines()[-1]
    client = client.replace(last, f"    print('probability', {last.strip()})")
    by_hand = "afm-ctr prepare --schema by-hand.yaml --input 'logs/*.csv.gz' --output by-hand\n"
    script = build + look + serve + "python client.py\n" + by_hand
    for port, free in zip(PORTS, free_ports(), strict=True):
        script, client = script.replace(port, free), client.replace(port, free)
    (tmp_path / "client.py").write_text(client)
    code, printed = bash(script, tmp_path)
    assert code == 0, printed[-5000:]
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 30
    assert list((tmp_path / "run/explain").iterdir()) and (tmp_path / "run/report.html").is_file()
    rows = [Manifest.load(tmp_path / name).splits for name in ("data", "by-hand")]
    assert [sum(splits.values()) for splits in rows] == [800, 800]
    (probability,) = re.findall(r"^probability \[([\d.]+)\]$", printed, re.M)
    assert 0 < float(probability) < 1


def test_horovod_for_any_keras_model(root: Path) -> None:
    (code,) = blocks(root / "docs/cluster.md", "python", "Keras models of your own")
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    before = [variable.numpy() for variable in model.variables]
    names: dict[str, Any] = {"keras": keras, "model": model, "my_part_of_the_data": None}
    data = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    fit = model.fit
    object.__setattr__(model, "fit", lambda _, **options: fit(data[:, :2], data[:, 2:], verbose=0, **options))
    exec(compile(code, "docs/cluster.md", "exec"), names)
    assert names["world"].size == 1
    assert all(np.any(variable.numpy() != old) for variable, old in zip(model.variables, before, strict=True))


def test_the_client(root: Path, walked: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of docs/serving.md after the first, in their order, against a model with Criteo's columns."""
    _, score, explain = blocks(root / "docs/serving.md", "python", "The client")
    exported = Path(export_model(walked.run, tmp_path / "models").path)
    monkeypatch.chdir(exported / "assets.extra")
    slots = 39
    names: dict[str, Any] = {"ids": np.ones([1, slots], np.int64), "values": np.ones([1, slots], np.float32)}
    printed: list[tuple[Any, ...]] = []
    names["print"] = lambda *values: printed.append(values)
    with local_server(exported.parent) as server:
        # A machine under load is slower than half a second.
        code = score.replace("8500", str(server.grpc_port)).replace("timeout=0.5", "timeout=60")
        # The client is closed at the end of the first block, where the second one's is still open.
        indented = "".join(f"    {line}\n" for line in explain.splitlines())
        exec(compile(code + indented, "docs/serving.md", "exec"), names)
    probabilities, versions = printed[0]
    assert probabilities.shape == (2,) and ((probabilities > 0) & (probabilities < 1)).all()
    assert list(versions) in ([1], [1, 1])
    assert len(printed) == 6 and 0 < sum(share for _, share in printed[1:]) <= 1


def test_the_files_beside_those_of_fuxictr(root: Path, tmp_path: Path) -> None:
    """Schema, config and commands of docs/coming-from-fuxictr.md."""
    page, heading = root / "docs/coming-from-fuxictr.md", "Side by side"
    schema, config = blocks(page, "yaml", heading)
    (commands,) = blocks(page, "sh", heading)
    (tmp_path / "schema.yaml").write_text(schema)
    (tmp_path / "train.yaml").write_text(config)
    (tmp_path / "clicks.csv").write_text("\n".join(["user,item,price,clicked", *shop_rows(1000, 1)]) + "\n")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    code, printed = bash("source .venv/bin/activate\n" + commands, tmp_path)
    assert code == 0, printed[-5000:]
    assert Manifest.load(tmp_path / "data").splits["test"] == 100 and (tmp_path / "run").is_dir()
