"""Side tables through the job: the same bytes by several processes, and copies of what rows were joined with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from afm_ctr.errors import UserError
from afm_ctr.records import Manifest
from afm_ctr.schema import ResolvedSchema
from beam_jobs import PrepareOptions, prepare

PROCESSES = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
SPEC: dict[str, Any] = {
    "name": "joined",
    "format": {"kind": "delimited", "header": False, "columns": ["label", "user", "n"]},
    "label": {"column": "label"},
    "side_tables": {
        "users": {
            "input": "tables/users*.csv",
            "format": {"kind": "delimited"},
            "key": "user",
            "columns": ["age", "city"],
        }
    },
    "fields": [
        {"name": "city", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 9}, "missing": "own"},
        {"name": "age", "kind": "numeric", "encoding": {"kind": "buckets", "boundaries": [25]}},
        {"name": "where", "kind": "cross", "columns": ["user", "city"], "encoding": {"kind": "hash", "buckets": 40}},
        {"name": "n", "kind": "numeric", "encoding": {"kind": "value"}},
    ],
}


def shards(folder: Path) -> list[tuple[str, str, int]]:
    return [(shard.file, shard.sha256, shard.rows) for shard in Manifest.load(folder).shards]


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    pick = random.Random(4)
    (tmp_path / "schema.yaml").write_text(json.dumps(SPEC))
    (tmp_path / "tables").mkdir()
    users = [f"u{number},{pick.choice(['', 20, 41, 'old'])},{pick.choice('abc')}" for number in range(60)]
    (tmp_path / "tables/users-1.csv").write_text("user,age,city\n" + "\n".join(users[:20]))
    (tmp_path / "tables/users-2.csv").write_text("user,age,city\n" + "\n".join(users[20:]))
    rows = [f"{pick.randrange(2)},u{pick.randrange(80)},{number}" for number in range(2000)]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    return {
        "schema": tmp_path / "schema.yaml",
        "inputs": [str(tmp_path / "log.csv")],
        "split": "hash:user:80/20",
        "chunk_bytes": 4000,
        "max_reject_share": 0.5,
    }


def test_side_tables_through_the_job(tmp_path: Path, options: dict[str, Any]) -> None:
    one, several, again = (tmp_path / name for name in ("one", "several", "again"))
    summary = prepare(PrepareOptions(**options, output=str(one)))
    assert summary.rejects.keys() == {"bad_number"}, "a bad cell of a table is a bad cell of the rows joined with it"
    prepare(PrepareOptions(**options, output=str(several), beam_args=PROCESSES))
    assert shards(one) == shards(several)

    manifest, schema = Manifest.load(one), ResolvedSchema.load(one)
    assert manifest.side_tables["users"].rows == 60
    assert Manifest.load(several).side_tables == manifest.side_tables
    assert not list(one.glob("attempt-*/work"))

    # The user's own tables have changed; who goes by the prepared schema goes by the copies beside it.
    for path in (tmp_path / "tables").iterdir():
        path.unlink()
    prepare(PrepareOptions(**{**options, "schema": one}, output=str(again)))
    assert shards(again) == shards(one)
    with pytest.raises(UserError, match=r"side_tables\.users\.input: no file matches"):
        prepare(PrepareOptions(**options, output=str(tmp_path / "none")))
    with pytest.raises(UserError, match="give the folder of its data set"):
        prepare(PrepareOptions(**{**options, "schema": schema}, output=str(tmp_path / "none")))
    assert not (tmp_path / "none" / "manifest.json").exists()

    assert manifest.tables(one, schema.spec) is not None
    copy = one / "side/users.jsonl"
    copy.write_text(copy.read_text().replace('"a"', '"b"', 1))
    with pytest.raises(UserError, match=r"side does not hold the tables of manifest\.json"):
        manifest.tables(one, schema.spec)
