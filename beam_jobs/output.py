"""The output folder of a prepared data set: checks of existing content, and publishing.

::

    <out>/manifest.json                          written last: it makes the data set exist
    <out>/schema.yaml, <out>/vocab/              the resolved schema
    <out>/side/                                  copies of the side tables
    <out>/sample_rows.jsonl                      raw columns of a few rows, for warming up servers
    <out>/rejects/part-00000.jsonl               rejected lines of chunk 0
    <out>/attempt-<hex>/<split>/part-00000.tfrecord
    <out>/attempt-<hex>/work/                    results of the passes; removed before the manifest is written
    <out>/rejects-failed.jsonl                   rejects of a run that failed because of them; the next run removes it

A data set to be replaced stays unchanged until all shards of the new one are written. Then its manifest is removed,
the rest is replaced, and the new manifest is written last.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from afm_ctr.errors import RunError, UserError
from afm_ctr.io.files import as_user_error, exclusive_lock
from afm_ctr.io.paths import local_path
from afm_ctr.records.manifest import MANIFEST_NAME, Manifest
from afm_ctr.sample_rows import SAMPLE_FILE, samples_text
from afm_ctr.schema import ResolvedSchema
from afm_ctr.sidetables import TABLES_FOLDER, SideTables
from beam_jobs import files
from beam_jobs.rejects import Share, taken

_ATTEMPT = "attempt-"
_SCHEMA = ("schema.yaml", "vocab")
_REJECTS = "rejects"
_FAILED = "rejects-failed.jsonl"
_OWN = (MANIFEST_NAME, *_SCHEMA, SAMPLE_FILE, TABLES_FOLDER, _REJECTS, _FAILED)


class Output:
    """The output folder of one run.

    Raises:
        UserError: it holds a data set and ``overwrite`` is off, or a schema that does not belong to a data set.
    """

    def __init__(self, folder: str, overwrite: bool) -> None:
        if not folder:
            raise UserError("--output is empty; name a folder, or . for this one")
        folder = local_path(folder)
        self.folder = files.absolute(folder)
        self.attempt_name = _ATTEMPT + uuid.uuid4().hex[:12]
        self.attempt = files.join(self.folder, self.attempt_name)
        self._overwrite = overwrite
        self._half_replaced = False
        self._published = False
        self._mode = 0o755
        self._look()

    def _look(self) -> tuple[list[str], str | None]:
        """The existing attempts, and the one of the data set. Raises UserError if they must not be replaced."""
        if not files.is_remote(self.folder) and os.path.isfile(self.folder):
            raise UserError(f"{self.folder} is a file; --output must be a folder")
        manifest = files.join(self.folder, MANIFEST_NAME)
        had_manifest = files.exists(manifest)
        if had_manifest and not self._overwrite:
            raise UserError(f"{self.folder} holds a data set already; choose another --output or give --overwrite")
        there = _attempt_of(files.read(manifest)) if had_manifest else None
        attempts = files.folders(self.folder, _ATTEMPT)
        if not (had_manifest or attempts) and files.exists(files.join(self.folder, _SCHEMA[0])):
            # Most likely the user's schema, which ours would overwrite.
            raise UserError(f"{self.folder} holds a {_SCHEMA[0]} but no data set; choose another --output")
        unfinished = [name for name in attempts if name != there]
        if unfinished and files.is_remote(self.folder) and not self._overwrite:
            raise UserError(
                f"{self.folder} holds the unfinished {unfinished[0]}, and it is not known whether its run is "
                "still going on; choose another --output, or give --overwrite when it is not"
            )
        return attempts, there

    def refuse_own(self, inputs: Iterable[str]) -> None:
        """Raise UserError if an input is a file of the data set in this folder."""
        for path in inputs:
            spellings = [path] if files.is_remote(path) else [os.path.abspath(path), os.path.realpath(path)]
            if any(map(self._is_own, spellings)):
                raise UserError(f"{path} is not a log but a file of the data set in --output; narrow --input")

    def _is_own(self, path: str) -> bool:
        folders = {self.folder} if files.is_remote(path) else {self.folder, os.path.realpath(self.folder)}
        for folder in (files.join(folder, "") for folder in folders):
            name = path.removeprefix(folder).split("/", 1)[0]
            if path.startswith(folder) and (name in _OWN or name.startswith(_ATTEMPT)):
                return True
        return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Allow one run at a time in a local folder. The system releases the lock when the process ends.

        Raises:
            UserError: the folder cannot be written, or another run is writing there.
        """
        if files.is_remote(self.folder):
            yield
            return
        with as_user_error(f"{self.folder}: cannot be written"):
            os.makedirs(self.folder, exist_ok=True)
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise UserError(f"{self.folder}: cannot be written: no permission")
        with exclusive_lock(self.folder, f"{self.folder}: another run is writing there; choose another --output"):
            yield

    def begin(self) -> None:
        """Remove the files of dead runs and begin the attempt; an existing data set stays for now.

        A local attempt is readable only by its owner until it is published: it holds results of workers.
        """
        attempts, there = self._look()
        for name in attempts:
            if name != there:
                files.remove(files.join(self.folder, name))
        files.remove(files.join(self.folder, _FAILED))
        for folder in ("", _REJECTS, TABLES_FOLDER):
            for path, target in files.half_written(files.join(self.folder, folder).rstrip("/")).items():
                ours = target in (*_SCHEMA, SAMPLE_FILE, MANIFEST_NAME, _FAILED) or target.startswith(_ATTEMPT)
                if folder or ours:
                    files.remove(path)
        if not files.is_remote(self.folder):
            os.mkdir(self.attempt)
            self._mode = os.stat(self.attempt).st_mode
            os.chmod(self.attempt, 0o700)

    def work(self, stage: str) -> str:
        """The folder for the results of a pass."""
        return files.join(self.attempt, "work", stage)

    def save_schema(self, schema: ResolvedSchema) -> str:
        """Write the resolved schema for the workers; returns the folder that holds it."""
        folder = self.work("schema")
        _save_schema(schema, folder)
        return folder

    def save_tables(self, tables: SideTables) -> str:
        """Write the side tables for the workers; returns the folder that holds them."""
        folder = self.work("tables")
        _save_tables(tables, folder)
        return folder

    def publish(
        self,
        manifest: Manifest,
        schema: ResolvedSchema,
        samples: Iterable[Mapping[str, bytes]],
        rejects: Sequence[Share],
        tables: SideTables | None,
    ) -> None:
        """Move everything to its place, the manifest last: then the data set exists.

        Raises:
            UserError: a file cannot be written.
            RunError: shards of this run have disappeared.
        """
        self._check_shards(manifest)
        self._half_replaced = True
        files.remove(files.join(self.folder, MANIFEST_NAME))
        self._remove_beside()
        _save_schema(schema, self.folder)
        if tables is not None:
            _save_tables(tables, self.folder)
        if text := samples_text(samples):
            files.write(files.join(self.folder, SAMPLE_FILE), text.encode())

        def place(share: Share) -> None:
            files.write(files.join(self.folder, _REJECTS, share.name), taken(self.work(_REJECTS), share))

        files.in_threads(place, rejects)
        files.remove(files.join(self.attempt, "work"))
        if not files.is_remote(self.folder):
            os.chmod(self.attempt, self._mode)
        self._save_manifest(manifest)
        self._published = True
        for name in files.folders(self.folder, _ATTEMPT):
            if name != self.attempt_name:
                files.remove(files.join(self.folder, name))

    def _check_shards(self, manifest: Manifest) -> None:
        """Check that all shards exist: without a lock (remote folders) another run may have removed them."""
        there = files.sizes(self.attempt)
        for shard in manifest.shards:
            if there.get(shard.file) != shard.bytes:
                raise RunError(
                    f"{files.join(self.attempt, shard.file)} is missing or has changed since it was written: another "
                    "run has been at work in this folder; nothing is published"
                )

    def _save_manifest(self, manifest: Manifest) -> None:
        if not files.is_remote(self.folder):
            with as_user_error(f"{self.folder}: cannot be written"):
                manifest.save(self.folder)
            return
        with tempfile.TemporaryDirectory() as local:
            manifest.save(local)
            files.write(files.join(self.folder, MANIFEST_NAME), Path(local, MANIFEST_NAME).read_bytes())

    def leave_rejects(self, rejects: Sequence[Share]) -> str:
        """After a failure: write the kept rejects of this run to one file; returns words for the error message."""
        if not rejects:
            return ""
        path = files.join(self.folder, _FAILED)
        with files.creating(path) as stream:
            for share in rejects:
                stream.write(taken(self.work(_REJECTS), share))
        return f"; the lines are in {path}"

    def abandon(self) -> None:
        """After a failure: remove the files of this run except the rejects left on purpose."""
        if self._published:
            return
        if self._half_replaced:
            self._remove_beside()
        files.remove(self.attempt)

    def _remove_beside(self) -> None:
        for name in (*_SCHEMA, SAMPLE_FILE):
            files.remove(files.join(self.folder, name))
        for folder, start in ((_REJECTS, "part-"), (TABLES_FOLDER, "")):
            for name in files.names(files.join(self.folder, folder)):
                if name.startswith(start) and name.endswith(".jsonl"):
                    files.remove(files.join(self.folder, folder, name))


def _save_schema(schema: ResolvedSchema, folder: str) -> None:
    with tempfile.TemporaryDirectory() as local:
        schema.save(local)
        for path in sorted(Path(local).rglob("*")):
            if path.is_file():
                files.write(files.join(folder, path.relative_to(local).as_posix()), path.read_bytes())


def _save_tables(tables: SideTables, folder: str) -> None:
    for name, content in tables.contents().items():
        files.write(files.join(folder, name), content)


def _attempt_of(manifest: bytes) -> str | None:
    try:
        found = json.loads(manifest)["attempt"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # damaged: not worth keeping until the new data set is complete
    return found if isinstance(found, str) else None


def load_schema(folder: str) -> ResolvedSchema:
    """Load the resolved schema in a folder, local or remote. Raises UserError: it is missing or damaged."""
    if not files.is_remote(folder):
        return ResolvedSchema.load(folder)
    with tempfile.TemporaryDirectory() as local:
        Path(local, "schema.yaml").write_bytes(files.read(files.join(folder, "schema.yaml")))
        Path(local, "vocab").mkdir()
        for name in files.names(files.join(folder, "vocab")):
            Path(local, "vocab", name).write_bytes(files.read(files.join(folder, "vocab", name)))
        return ResolvedSchema.load(local)
