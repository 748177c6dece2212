"""The folder of a prepared data set: what may stand there before, and how a run becomes a data set.

::

    <out>/manifest.json                          written last: with it, and not before, the data set exists
    <out>/schema.yaml, <out>/vocab/              the resolved schema
    <out>/sample_rows.jsonl                      raw columns of a few rows, to warm a server up with
    <out>/rejects/part-00000.jsonl               rejected lines of chunk 0
    <out>/attempt-<hex>/<split>/part-00000.tfrecord
    <out>/attempt-<hex>/work/                    results of the passes; removed before the manifest is written
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from afm_ctr.errors import UserError
from afm_ctr.locks import alone_in
from afm_ctr.records.manifest import MANIFEST_NAME, Manifest
from afm_ctr.samples import SAMPLE_FILE, samples_text
from afm_ctr.schema import ResolvedSchema
from beam_jobs import files

_ATTEMPT = "attempt-"
_SCHEMA = ("schema.yaml", "vocab")
_REJECTS = "rejects"


class Output:
    """The output folder of one run.

    Raises:
        UserError: it holds a data set and may not be overwritten, or a schema that no data set of ours left there.
    """

    def __init__(self, folder: str, overwrite: bool) -> None:
        self.folder = folder if files.is_remote(folder) else os.path.abspath(folder)
        self.attempt_name = _ATTEMPT + uuid.uuid4().hex[:12]
        self.attempt = files.join(self.folder, self.attempt_name)
        self._overwrite = overwrite
        self._look()

    def _look(self) -> list[str]:
        """The attempts that stand there, where it is right to replace them."""
        if not files.is_remote(self.folder) and os.path.isfile(self.folder):
            raise UserError(f"{self.folder} is a file; --output must be a folder")
        had_manifest = files.exists(files.join(self.folder, MANIFEST_NAME))
        if had_manifest and not self._overwrite:
            raise UserError(f"{self.folder} holds a data set already; choose another --output or give --overwrite")
        leftovers = files.folders(self.folder, _ATTEMPT)
        if not (had_manifest or leftovers) and files.exists(files.join(self.folder, _SCHEMA[0])):
            # Most likely the user's own schema: ours would replace it.
            raise UserError(f"{self.folder} holds a {_SCHEMA[0]} but no data set; choose another --output")
        return leftovers

    def refuse_own(self, inputs: Iterable[str]) -> None:
        """Raise UserError where an input is a file of the data set that stands in this folder."""
        for path in inputs:
            whole = path if files.is_remote(path) else os.path.abspath(path)
            name = whole.removeprefix(files.join(self.folder, "")).split("/", 1)[0]
            own = name in (MANIFEST_NAME, *_SCHEMA, SAMPLE_FILE, _REJECTS) or name.startswith(_ATTEMPT)
            if own and whole.startswith(files.join(self.folder, "")):
                raise UserError(f"{path} is no log but a file of the data set in --output; narrow --input")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One run at a time in a local folder. The system lets go of the lock however the process ends.

        Raises:
            UserError: the folder cannot be written, or another run is writing there.
        """
        if files.is_remote(self.folder):
            yield
            return
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from error
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise UserError(f"{self.folder}: cannot be written: no permission")
        with alone_in(self.folder, f"{self.folder}: another run is writing there; choose another --output"):
            yield

    def begin(self) -> None:
        """Remove what stands there: the manifest first, so that no half of a data set is taken for one."""
        leftovers = self._look()
        files.remove(files.join(self.folder, MANIFEST_NAME))
        self._remove_schema()
        self._remove_rejects()
        for name in leftovers:
            files.remove(files.join(self.folder, name))

    def work(self, stage: str) -> str:
        """The folder for the results of a pass."""
        return files.join(self.attempt, "work", stage)

    def save_schema(self, schema: ResolvedSchema) -> None:
        """Write the resolved schema beside where the manifest will be."""
        with tempfile.TemporaryDirectory() as local:
            schema.save(local)
            for path in sorted(Path(local).rglob("*")):
                if path.is_file():
                    files.write(files.join(self.folder, path.relative_to(local).as_posix()), path.read_bytes())

    def save_samples(self, rows: Iterable[Mapping[str, bytes]]) -> None:
        """Write the sample rows."""
        files.write(files.join(self.folder, SAMPLE_FILE), samples_text(rows).encode())

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest: from here on the data set exists.

        Raises:
            UserError: it cannot be written.
        """
        if not files.is_remote(self.folder):
            try:
                manifest.save(self.folder)
            except OSError as error:
                raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from error
            return
        with tempfile.TemporaryDirectory() as local:
            manifest.save(local)
            files.write(files.join(self.folder, MANIFEST_NAME), Path(local, MANIFEST_NAME).read_bytes())

    def end_work(self) -> None:
        """Remove the results of the passes."""
        files.remove(files.join(self.attempt, "work"))

    def abandon(self) -> None:
        """After a failure: remove all but the rejects, which may tell the user why."""
        self._remove_schema()
        files.remove(self.attempt)

    def _remove_schema(self) -> None:
        for name in (*_SCHEMA, SAMPLE_FILE):
            files.remove(files.join(self.folder, name))

    def _remove_rejects(self) -> None:
        rejects = files.join(self.folder, _REJECTS)
        for name in files.names(rejects):
            if name.startswith("part-") and name.endswith(".jsonl"):
                files.remove(files.join(rejects, name))


def load_schema(folder: str) -> ResolvedSchema:
    """The resolved schema in a folder, local or remote.

    Raises:
        UserError: it is not there or damaged.
    """
    if not files.is_remote(folder):
        return ResolvedSchema.load(folder)
    with tempfile.TemporaryDirectory() as local:
        Path(local, "schema.yaml").write_bytes(files.read(files.join(folder, "schema.yaml")))
        Path(local, "vocab").mkdir()
        for name in files.names(files.join(folder, "vocab")):
            Path(local, "vocab", name).write_bytes(files.read(files.join(folder, "vocab", name)))
        return ResolvedSchema.load(local)
