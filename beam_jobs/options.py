"""The options of a job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from afm_ctr.errors import UserError
from afm_ctr.io.paths import refuse_text
from afm_ctr.process_setup import load_tensorflow_without_keras
from afm_ctr.records.writer import Compression
from afm_ctr.sample_rows import SAMPLE_ROWS
from afm_ctr.schema import FeatureSchema, ResolvedSchema
from afm_ctr.visible import visible
from beam_jobs.passes import Progress
from beam_jobs.sources import CHUNK_BYTES, CHUNK_LINES

REJECTS_KEPT = 10_000
REJECT_SHARE = 0.01

_WHOLE = {"chunk_bytes": 1, "chunk_lines": 1, "max_rejects_kept": 0, "sample_rows": 0, "seed": -(2**63)}


@dataclass(frozen=True)
class PrepareOptions:
    """The options of ``afm-ctr prepare``.

    Attributes:
        schema: a feature schema or its file; or a resolved schema, its file or the folder of a data set or model:
            then its ids are used as they are and nothing is learnt from these logs.
        inputs: paths and globs of the raw logs; may be empty when ``split`` names the files.
        output: folder of the data set, local or of any file system that Beam knows.
        split: the split rule, see :mod:`beam_jobs.splits`; None = all rows are ``train``.
        labelled: False: the logs carry no label.
        parent_schema: resolved schema of an earlier data set: its ids stay, new ones are appended.
        overwrite: replace a data set that is there; it stays until the new one is complete.
        max_rejects_kept: how many rejected lines of each reason the data set keeps; all are counted.
        max_reject_share: the share of rows that may be rejected before the job fails.
        sample_rows: raw rows that travel with the data set, its runs and exports, to warm a server up with; 0: none.
        chunk_bytes: bytes of a chunk of a plain file.
        chunk_lines: lines of a chunk of a packed file, rows of one of a Parquet file.
        compression: of the shards. ``gzip`` shards cannot be entered half-way.
        seed: of the order of rows inside a shard.
        beam_args: Beam's options as Beam spells them.
        progress: called with (stage, rows done, rows in all; 0 = not known).
        load_tensorflow: called once workers that are threads of this process are going to need it.
        warn: called with a line that the user should see; by default it goes to stderr.

    Raises:
        UserError: a size, share or count that cannot be.
    """

    schema: str | Path | FeatureSchema | ResolvedSchema
    inputs: Sequence[str]
    output: str
    split: str | None = None
    labelled: bool = True
    parent_schema: str | Path | None = None
    overwrite: bool = False
    max_rejects_kept: int = REJECTS_KEPT
    max_reject_share: float = REJECT_SHARE
    sample_rows: int = SAMPLE_ROWS
    chunk_bytes: int = CHUNK_BYTES
    chunk_lines: int = CHUNK_LINES
    compression: Compression = "none"
    seed: int = 0
    beam_args: Sequence[str] = ()
    progress: Progress | None = None
    load_tensorflow: Callable[[], None] = load_tensorflow_without_keras
    warn: Callable[[str], None] = lambda line: print(f"prepare: {visible(line)}", file=sys.stderr)

    def __post_init__(self) -> None:
        if not isinstance(self.schema, str | Path | FeatureSchema | ResolvedSchema):
            raise UserError(f"schema must be a path or a schema, got {type(self.schema).__name__}")
        refuse_text(self.inputs)
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(f"{name} must be a whole number of at least {least:,}, got {value!r}")
        share = self.max_reject_share
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise UserError(f"--max-reject-share is a share, between 0 and 1, got {share!r}")
        if self.compression not in get_args(Compression):
            raise UserError(
                f"compression must be one of {', '.join(get_args(Compression))}, got {self.compression!r}"
            )
