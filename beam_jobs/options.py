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
            then its ids are used and nothing is learned from these logs.
        inputs: paths and globs of the raw logs; may be empty if ``split`` names the files.
        output: folder of the data set, local or on any file system that Beam supports.
        split: the split rule, see :mod:`beam_jobs.splits`; None: all rows are ``train``.
        labelled: False: the logs have no label.
        parent_schema: resolved schema of an earlier data set: its ids stay, new ones are appended.
        overwrite: replace an existing data set; it stays until the new one is complete.
        max_rejects_kept: maximum number of rejected lines of each reason to keep; all are counted.
        max_reject_share: the maximum share of rejected rows before the job fails.
        sample_rows: raw rows kept with the data set, its runs and exports, for warming up servers; 0: none.
        chunk_bytes: chunk size of plain files, in bytes.
        chunk_lines: chunk size of compressed files in lines, of Parquet files in rows.
        compression: compression of the shards; readers cannot seek in ``gzip`` shards.
        seed: seed of the order of rows in a shard.
        beam_args: options for Beam.
        progress: called with (stage, rows done, rows in all; 0: not known).
        load_tensorflow: called before worker threads of this process need TensorFlow.
        warn: called with warnings for the user; by default they go to stderr.

    Raises:
        UserError: an invalid size, share or count.
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
