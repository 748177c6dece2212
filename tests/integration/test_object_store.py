"""prepare on s3://, by a server of moto's on loopback; and what the other commands say to it."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from afm_ctr.errors import RunError, UserError
from afm_ctr.records import Reader
from beam_jobs import PrepareOptions, files, prepare
from tests import raw_logs
from tests.integration.conftest import AFM_CTR, afm_ctr

boto3 = pytest.importorskip("boto3", reason="boto3 and moto, of the extra dev, are not installed")
moto = pytest.importorskip("moto.server", reason="boto3 and moto, of the extra dev, are not installed")

SCHEMA = (
    raw_logs.SCHEMA
    + """
  - {name: maker, kind: categorical, encoding: {kind: hash, buckets: 50}}
side_tables:
  sites: {input: FOLDER/sites.csv, format: {kind: delimited}, key: {log: site, table: site}, columns: [maker]}
"""
)


def contents(out: Path) -> dict[str, Any]:
    return anywhere(raw_logs.contents(out))


def anywhere(found: dict[str, Any]) -> dict[str, Any]:
    """What is the same wherever the logs lie."""
    rejects = {name: re.sub(rb'"source": "[^"]*/', b'"source": "', lines) for name, lines in found["rejects"].items()}
    return found | {"rejects": rejects}


class Store:
    """A bucket."""

    def __init__(self) -> None:
        self.client = boto3.client("s3")
        self.client.create_bucket(Bucket="ctr")

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="ctr", Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def put(self, path: Path, key: str) -> None:
        self.client.upload_file(str(path), "ctr", key)

    def get(self, prefix: str, folder: Path) -> Path:
        """Copy what is below a prefix to a folder."""
        for key in self.keys(prefix):
            path = folder / key.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file("ctr", key, str(path))
        return folder


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    logging.getLogger("werkzeug").setLevel("ERROR")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield Store()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        server.stop()


@pytest.fixture(scope="module")
def whole(whole: dict[str, Any]) -> dict[str, Any]:
    """The data set of the same logs on a local disk."""
    return anywhere(whole)


@pytest.fixture(scope="module")
def there(store: Store, logs: dict[str, Any]) -> dict[str, Any]:
    """The logs in the bucket."""
    folder = Path(logs["schema"]).parent
    for name in ("a.csv", "b.csv.gz"):
        store.put(folder / name, f"logs/{name}")
    return logs | {"inputs": ["s3://ctr/logs/*.csv", "s3://ctr/logs/b*.gz"]}


def test_the_same_bytes_published_and_replaced(
    tmp_path: Path, store: Store, there: dict[str, Any], whole: dict[str, Any]
) -> None:
    summary = prepare(PrepareOptions(**there, output="s3://ctr/data"))
    local = store.get("data/", tmp_path / "local")
    assert contents(local) == whole
    # Nothing else is left: no result of a pass, no half-written object, no upload that was not completed.
    names = {re.sub(r"attempt-\w+", "attempt", key) for key in store.keys("data/")}
    assert not [name for name in names if "/work/" in name or ".tmp-" in name]
    assert store.client.list_multipart_uploads(Bucket="ctr").get("Uploads", []) == []
    with pytest.raises(UserError, match="holds a data set already"):
        prepare(PrepareOptions(**there, output="s3://ctr/data"))
    again = prepare(PrepareOptions(**there, output="s3://ctr/data", overwrite=True))
    assert again.rows_out == summary.rows_out
    assert {re.sub(r"attempt-\w+", "attempt", key) for key in store.keys("data/")} == names
    assert contents(store.get("data/", tmp_path / "again")) == whole


def test_a_side_table_and_an_empty_log(tmp_path: Path, store: Store, logs: dict[str, Any]) -> None:
    (tmp_path / "sites.csv").write_text("site,maker\n" + "".join(f"site{i},m{i % 7}\n" for i in range(300)))
    (tmp_path / "a.csv").write_bytes(Path(logs["schema"]).with_name("a.csv").read_bytes())
    (tmp_path / "empty.csv").touch()
    outputs = {}
    for place in (str(tmp_path), "s3://ctr/joined"):
        if "://" in place:
            for name in ("sites.csv", "a.csv", "empty.csv"):
                store.put(tmp_path / name, f"joined/{name}")
        schema = tmp_path / "schema.yaml"
        schema.write_text(SCHEMA.replace("FOLDER", place))
        options = logs | {"schema": str(schema), "inputs": [f"{place}/a.csv", f"{place}/empty.csv"]}
        prepare(PrepareOptions(**options, output=f"{place}/out"))
        outputs[place] = tmp_path / "out"
        if "://" in place:
            outputs[place] = store.get("joined/out/", tmp_path / "copy")
    local, remote = map(contents, outputs.values())
    # The schema names the table's file.
    assert local.pop("schema") != remote.pop("schema") and local == remote
    assert sorted(path.name for path in (tmp_path / "copy" / "side").iterdir()) == ["sites.jsonl"]


def test_too_many_rejects_leave_their_lines_and_no_data_set(store: Store, there: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"the lines are in s3://ctr/bad/rejects-failed\.jsonl"):
        prepare(PrepareOptions(**there | {"max_reject_share": 0.001}, output="s3://ctr/bad"))
    assert store.keys("bad/") == ["bad/rejects-failed.jsonl"]


KILLED = """
import os, signal, sys, json
from beam_jobs import PrepareOptions, files, prepare
write, left = files.write, 3
def dying(path, content, **options):
    global left
    write(path, content, **options)
    left -= "/work/convert/" in path
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
files.write = dying
prepare(PrepareOptions(**json.loads(sys.argv[1])))
"""


@pytest.mark.soak
def test_a_killed_run_is_refused_until_overwrite(
    tmp_path: Path, store: Store, there: dict[str, Any], whole: dict[str, Any], root: Path
) -> None:
    options = there | {"output": "s3://ctr/killed"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(options)], cwd=root, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert "killed/manifest.json" not in store.keys("killed/") and store.keys("killed/attempt-")
    with pytest.raises(UserError, match=r"holds the unfinished attempt-.* or give --overwrite"):
        prepare(PrepareOptions(**options))
    prepare(PrepareOptions(**options, overwrite=True))
    assert contents(store.get("killed/", tmp_path / "copy")) == whole
    assert len({key.split("/")[1] for key in store.keys("killed/attempt-")}) == 1


def test_of_two_runs_at_once_one_ends_in_one_line(
    tmp_path: Path, store: Store, there: dict[str, Any], whole: dict[str, Any]
) -> None:
    options, stages = there | {"output": "s3://ctr/two"}, []

    def second(stage: str, done: int, rows: int) -> None:
        stages.append(stage)
        if stages.count("convert") == 1:
            stages.append("convert")
            with pytest.raises(UserError, match=r"holds the unfinished attempt-.* or give --overwrite"):
                prepare(PrepareOptions(**options))
            prepare(PrepareOptions(**options, overwrite=True))

    with pytest.raises((UserError, RunError)) as failed:
        prepare(PrepareOptions(**options, progress=second))
    assert len(str(failed.value).splitlines()) == 1 and "s3://ctr/two/attempt-" in str(failed.value)
    assert contents(store.get("two/", tmp_path / "copy")) == whole
    assert len({key.split("/")[1] for key in store.keys("two/attempt-")}) == 1


def test_what_is_not_there_is_one_line(store: Store, there: dict[str, Any]) -> None:
    for inputs, said in (
        (["s3://ctr/none/*.csv"], "no file matches"),
        (["s3://no-such-bucket/a.csv"], "no-such-bucket"),
    ):
        with pytest.raises(UserError, match=said) as failed:
            prepare(PrepareOptions(**there | {"inputs": inputs}, output="s3://ctr/never"))
        assert len(str(failed.value).splitlines()) == 1
    with pytest.raises(UserError, match=r"s3://no-such-bucket/out.*cannot be written") as failed:
        prepare(PrepareOptions(**there, output="s3://no-such-bucket/out"))
    assert len(str(failed.value).splitlines()) == 1
    files.write("s3://ctr/nothing", b"")
    assert files.read("s3://ctr/nothing") == b""


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "predict", "explain"])
def test_other_commands_say_how_to_get_there(command: str) -> None:
    done = afm_ctr(command, "--data", "s3://ctr/data", "--model-dir", "run", code=2)
    assert (
        len(done.stderr.splitlines()) == 1 and "mount" in done.stderr and "aws s3 sync s3://ctr/data" in done.stderr
    )
    assert AFM_CTR.exists()


def test_the_reader_says_so_too() -> None:
    with pytest.raises(UserError, match="aws s3 sync s3://ctr/data"):
        Reader("s3://ctr/data", "train", 10)
