"""Prepare with processes: several give the same bytes, and a killed run leaves nothing that looks complete."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from afm_ctr.records import Manifest
from afm_ctr.schema import ResolvedSchema
from beam_jobs.prepare import PrepareOptions, prepare

PROCESSES = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]

SCHEMA = """
name: torture
format: {kind: delimited, header: true}
label: {column: click}
key: id
group: user
fields:
  - {name: price, kind: numeric, encoding: {kind: value, log: true, standardise: true}}
  - {name: age, kind: numeric, encoding: {kind: buckets, quantiles: 5}, missing: own}
  - {name: site, kind: categorical, encoding: {kind: vocabulary, min_count: 2}}
  - {name: user, kind: categorical, encoding: {kind: hash, buckets: 1000}}
  - {name: tags, kind: categorical, encoding: {kind: hash, buckets: 100}, separator: "|", max_values: 3}
"""


def make_log(path: Path, rows: int, seed: int) -> None:
    pick = random.Random(seed)
    lines = [b"id,click,price,age,site,user,tags"]
    for i in range(rows):
        tags = "|".join(pick.choice("abcdef") for _ in range(pick.randrange(4)))
        cells = f"{path.name}-{i},{pick.randrange(2)},{pick.random() * 1e3:.3f},{pick.choice(['', 20, 35, 61])}"
        lines.append(f"{cells},site{pick.randrange(300)},u{pick.randrange(500)},{tags}".encode())
        if i % 97 == 0:
            lines.append(pick.choice([b"", b"a,b", b"x,1,nan,1,s,u,t", b"\xff,1,1,1,s,u,t", b'y,1,"1,1,s,u,t']))
    data = b"\n".join(lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def logs(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    make_log(tmp_path / "a.csv", 6000, 1)
    make_log(tmp_path / "b.csv.gz", 4000, 2)
    inputs = [str(tmp_path / "*.csv"), str(tmp_path / "*.gz")]
    return {
        "schema": tmp_path / "schema.yaml",
        "inputs": inputs,
        "split": "hash:user:80/10/10",
        "chunk_bytes": 30_000,
        "chunk_lines": 700,
        "max_reject_share": 0.02,
    }


def contents(out: Path) -> dict[str, Any]:
    manifest = Manifest.load(out)
    return {
        "shards": [(shard.file, shard.sha256, shard.rows, shard.positives) for shard in manifest.shards],
        "rejects": {path.name: path.read_bytes() for path in sorted((out / "rejects").iterdir())},
        "counts": (manifest.rows_in, manifest.rows_out, manifest.rejects),
        "schema": ResolvedSchema.load(out).id,
        "samples": (out / "sample_rows.jsonl").read_bytes(),
    }


def test_one_process_and_several_give_the_same_bytes(tmp_path: Path, logs: dict[str, Any]) -> None:
    one = prepare(PrepareOptions(**logs, output=str(tmp_path / "one")))
    several = prepare(PrepareOptions(**logs, output=str(tmp_path / "several"), beam_args=PROCESSES))
    threads = ["--direct_num_workers=3", "--direct_running_mode=multi_threading"]
    prepare(PrepareOptions(**logs, output=str(tmp_path / "threads"), beam_args=threads))
    assert contents(tmp_path / "one") == contents(tmp_path / "several") == contents(tmp_path / "threads")
    assert one.rows_in == several.rows_in == 10_000 + 62 + 42
    assert one.rows_out == several.rows_out == 10_000
    assert sum(one.rejects.values()) == 62 + 42 and len(one.rejects) >= 4
    assert one.shards > 30


RUN = """
import json, sys
from beam_jobs.prepare import PrepareOptions, prepare
prepare(PrepareOptions(**json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("stage", ["analyse", "convert"])
def test_a_killed_run_leaves_no_data_set_and_the_next_one_finishes(
    tmp_path: Path, logs: dict[str, Any], stage: str
) -> None:
    prepare(PrepareOptions(**logs, output=str(tmp_path / "whole")))
    out = tmp_path / "out"
    options = json.dumps({**logs, "schema": str(logs["schema"]), "output": str(out)})
    process = subprocess.Popen([sys.executable, "-c", RUN, options], env=os.environ, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if len(list(out.glob(f"attempt-*/work/{stage}/*"))) >= 3:
                break
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert list(out.glob(f"attempt-*/work/{stage}/*"))
    assert not (out / "manifest.json").exists()
    if stage == "convert":
        assert list(out.glob("attempt-*/train/*.tfrecord"))
    prepare(PrepareOptions(**logs, output=str(out)))
    assert contents(out) == contents(tmp_path / "whole")
    assert len(list(out.glob("attempt-*"))) == 1
    assert not list(out.rglob("*.tmp-*")) and not list(out.rglob("work"))


def test_the_command(tmp_path: Path, logs: dict[str, Any]) -> None:
    command = [str(Path(sys.executable).with_name("afm-ctr")), "prepare", "--schema", str(logs["schema"])]
    command += ["--input", logs["inputs"][0], "--output", str(tmp_path / "out"), "--json"]
    command += ["--max-reject-share", "0.02"]
    done = subprocess.run([*command, "--split", "tail:0.1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["splits"]["test"]["rows"] <= 606 and summary["rows_in"] == 6062
    again = subprocess.run([*command, "--overwrite", "--direct_num_wokers=2"], capture_output=True, text=True)
    assert again.returncode == 2 and "--direct_num_wokers=2" in again.stderr and "Traceback" not in again.stderr
    assert (tmp_path / "out" / "manifest.json").exists()


def test_criteo_rows(tmp_path: Path, shared_data: Path, root: Path) -> None:
    schema = root / "examples" / "criteo" / "schema.yaml"
    if not schema.exists():
        pytest.skip("examples/criteo is not there")
    summary = prepare(
        PrepareOptions(
            schema=schema,
            inputs=[str(shared_data / "criteo" / "criteo_120k.tsv.gz")],
            output=str(tmp_path / "out"),
            split="tail:0.1/0.1",
        )
    )
    assert summary.rows_in == 120_000 == summary.rows_out + sum(summary.rejects.values())
    assert [summary.splits[name]["rows"] for name in ("valid", "test")] == [12_000, 12_000]
