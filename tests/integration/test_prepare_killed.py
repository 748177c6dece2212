"""A run of prepare killed in the middle of any of its writes: the next one ends with the bytes of an undisturbed one,
and whoever looks, at whatever moment, never meets a manifest over data that are not all there."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from afm_ctr.records import Manifest
from afm_ctr.schema import ResolvedSchema
from tests import raw_logs

JOB = Path(__file__).with_name("jobs") / "killed_prepare.py"
# A part of the path of the file that is being written, and how many such files there are before it.
STAGES = [
    ("/work/analyse/", 2),
    ("/work/vocabularies/", 0),
    ("/train/part-", 4),
    ("/work/convert-found", 0),
    ("/out/rejects/", 1),
    ("/out/manifest.json?", 0),
    ("/out/manifest.json!", 0),
]
MORE = [
    ("/work/analyse-units", 0),
    ("/work/counts/", 2),
    ("/work/analyse-found", 0),
    ("/work/schema/", 0),
    ("/work/rejects/", 2),
    ("/work/convert/", 5),
    ("/out/schema.yaml", 0),
]


class Watcher:
    """Looks all the time at a folder, compares every manifest it meets with the files, and keeps what is wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wrong: list[str] = []
        self.verified: Counter[str] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        path = self.folder / "manifest.json"
        while not self._ended.is_set():
            try:
                before = path.read_bytes()
            except FileNotFoundError:
                continue
            problem = self._problem(before)
            try:
                same = path.read_bytes() == before
            except FileNotFoundError:
                same = False
            # A data set may be replaced while it is read: then its manifest is gone or another one.
            if problem and same:
                self.wrong.append(problem)
            elif same:
                self.verified[json.loads(before)["attempt"]] += 1

    def _problem(self, text: bytes) -> str | None:
        try:
            manifest = Manifest.model_validate(json.loads(text))
            for shard in manifest.shards:
                content = Path(manifest.path_of(self.folder, shard)).read_bytes()
                if hashlib.sha256(content).hexdigest() != shard.sha256:
                    return f"{shard.file}: other bytes than the manifest says"
            if ResolvedSchema.load(self.folder).id != manifest.schema_id:
                return "another schema than the manifest says"
            reasons = [
                json.loads(line)["reason"] for file in (self.folder / "rejects").iterdir() for line in file.open()
            ]
            if Counter(reasons) != Counter(manifest.rejects_kept):
                return f"rejects: {Counter(reasons)}, the manifest says {manifest.rejects_kept}"
        except Exception as error:
            return repr(error)
        return None


class Runs:
    """The process that runs prepare in children of its own."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._sink = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, str(JOB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._sink, text=True
        )

    def run(self, options: dict[str, Any], dies: tuple[str, int] | None = None) -> int:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"options": options, "dies": dies}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._sink.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stages", [STAGES, pytest.param(MORE, marks=pytest.mark.soak)], ids=["some", "more"])
def test_killed_in_the_middle_of_any_write(tmp_path: Path, stages: list[tuple[str, int]]) -> None:
    out = tmp_path / "out"
    logs = raw_logs.write(tmp_path, rows=1500) | {"chunk_bytes": 12_000, "chunk_lines": 200}
    options = {**logs, "output": str(out), "overwrite": True}
    runs = Runs(tmp_path / "runs.log")
    try:
        assert runs.run({**logs, "output": str(tmp_path / "whole")}) == 0, runs.log.read_text()[-3000:]
        whole = raw_logs.contents(tmp_path / "whole")
        with Watcher(out) as watcher:
            for number, (part, before) in enumerate(stages):
                assert runs.run(options, (part, before)) == -9, f"{part}: {runs.log.read_text()[-3000:]}"
                replaced = part.startswith("/out/")
                published = part.endswith("!")
                # Until all shards of the new data set are there the old one stays.
                assert (out / "manifest.json").exists() == ((number > 0 and not replaced) or published), part
                assert runs.run(options) == 0, runs.log.read_text()[-3000:]
                assert raw_logs.contents(out) == whole, part
                assert len(list(out.glob("attempt-*"))) == 1
                assert not list(out.rglob(".tmp-*")) and not list(out.rglob("work"))
        assert watcher.wrong == []
        assert len(watcher.verified) > len(stages) // 2
    finally:
        runs.end()
