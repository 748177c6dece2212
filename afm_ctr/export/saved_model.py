"""Writes the version folder: SavedModel, names of the pairs, warm-up requests."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Literal, get_args

import tensorflow as tf
from pydantic import BaseModel, ConfigDict

from afm_ctr.errors import UserError
from afm_ctr.export.columns import write_column_forms
from afm_ctr.export.float16 import HalfChange, halve_and_measure
from afm_ctr.export.servable import Servable
from afm_ctr.export.streamed import StreamedTable
from afm_ctr.export.warmup import warmup_rows, write_warmup
from afm_ctr.io.files import as_user_error, new_folder, sha256_of
from afm_ctr.models import CTRModel
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.model_io import Which, open_run
from afm_ctr.training.stored_table import LARGEST_TABLE_MB, StoredTable
from afm_ctr.visible import counted
from serving.server.versions import LARGEST, version_folders

EXTRA = "assets.extra"

WarmupRows = Literal["made-up", "log", "none"]


class ExportSummary(BaseModel):
    """What was written.

    ``warmup``: the origin of the rows of the warm-up requests: ``made-up`` (from vocabularies and boundaries),
    ``log`` (raw rows kept by ``prepare``), or ``none``: there are no such requests. ``logit_offset``: the correction
    in the logit for training on a part of the negatives. ``half``: the effect of storing the vectors in half
    precision, None if they are not. ``streamed``: whether the table was written block by block.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    base: str
    version: int
    checkpoint: str
    schema_id: str
    signatures: dict[str, list[str]]
    raw_columns: list[str]
    output: str
    slots: int
    pairs: int
    feature_size: int
    streamed: bool = False
    logit_offset: float
    half: HalfChange | None = None
    warmup: WarmupRows
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return self.model_dump()

    def __str__(self) -> str:
        asked = ", ".join(self.signatures)
        origin = {"log": "warm-up with rows of the log", "made-up": "warm-up with made-up rows", "none": "no warm-up"}
        offset, half = "", "" if self.half is None else f"\n{self.half}"
        if self.logit_offset:
            rate = math.exp(self.logit_offset)
            offset = f"; logit corrected by {self.logit_offset:+.4f}: a share of {rate:.4g} of the negatives was kept"
        streamed = ", written block by block" if self.streamed else ""
        return (
            f"{self.path} ({self.bytes / 1e6:,.1f} MB): signatures {asked} -> {self.output}, logit{offset}\n"
            f"{self.feature_size:,} ids, {self.slots} slots, {counted(self.pairs, 'pair')}{streamed}; "
            f"{origin[self.warmup]}{half}"
        )


def export_model(
    model: str | Path | CTRModel,
    export_base: str | os.PathLike[str],
    version: int | None = None,
    which: Which = "best",
    *,
    schema: ResolvedSchema | None = None,
    warmup: WarmupRows = "made-up",
    float16_tables: bool = False,
    data_dir: str | Path | None = None,
    split: str = "test",
    largest_table_mb: float = LARGEST_TABLE_MB,
) -> ExportSummary:
    """Write a trained model as ``<export_base>/<version>``, the layout of TensorFlow Serving's model base path.

    Signatures (all of method Predict; B rows, F slots):

    ===================  ===========================================  =====================================
    ``serving_default``  feature_ids int64 [B, F], feature_vals       probability (or score) [B], logit [B],
                         float32 [B, F]                               bad_cells int32 [B]
    ``examples``         examples string [B], serialized tf.Examples  the same
    ``raw``              every raw column string [B], empty=missing   the same
    ``explain``          as ``serving_default``                       attention float32 [B, pairs], bad_cells
    ===================  ===========================================  =====================================

    An unreadable value (a cell of ``raw``; an id out of range; a value that is not finite; an Example that does not
    parse) is treated as missing and counted in ``bad_cells``; it never fails the call.

    A model without attention has no ``explain``. The folder is written under a name that no server takes for a
    version and renamed when complete; it needs neither the run nor this package.

    Args:
        model: folder of a training run, or a model in memory.
        export_base: folder of all versions of this served model.
        version: 1 or more; None is one more than the highest existing one.
        which: ``best`` or ``latest`` checkpoint of a run.
        schema: of a model in memory: :attr:`afm_ctr.FrameData.schema`.
        warmup: rows of the requests that a server replays before a version serves: ``made-up`` from the schema,
            ``log`` for raw rows of the log that the run keeps, ``none`` for no such requests.
        float16_tables: store the vectors in half precision; they are cast up after the gather.
        data_dir: with ``float16_tables``, a prepared data set: AUC and loss of its ``split`` before and after.
        split: of ``data_dir``.
        largest_table_mb: a run's table of more megabytes (as float32) is written block by block from the checkpoint,
            and never held as a whole.

    Raises:
        UserError: there is no such checkpoint, the version exists, the folder cannot be written, or ``warmup`` is
            ``log`` and the run has no such rows.
    """
    if not isinstance(model, str | os.PathLike | CTRModel):
        raise UserError(f"export: model must be a run's folder or a CTRModel, got {type(model).__name__}")
    if warmup not in get_args(WarmupRows):
        raise UserError(f"export: warmup must be one of {', '.join(get_args(WarmupRows))}, got {warmup!r}")
    if version is not None and not isinstance(version, int):
        raise UserError(f"export: version must be a whole number, got {version!r}")
    base = Path(export_base)
    chosen = _version(base, version)
    folder = None if isinstance(model, CTRModel) else Path(model)
    if isinstance(model, CTRModel):
        schema = _checked_schema(model, schema, warmup)
    elif schema is not None:
        raise UserError("export: schema= is for a model in memory; a run has its own")
    else:
        model, schema, *_ = open_run(model, which, largest_table_mb=largest_table_mb)
    requests = None if warmup == "none" else warmup_rows(schema, folder or base, warmup)
    half, change = halve_and_measure(model, schema, data_dir, split) if float16_tables else (None, None)
    streamed = StreamedTable(model.table, float16_tables) if isinstance(model.table, StoredTable) else None
    servable = Servable(model, schema, half, streamed)
    target = base / str(chosen)
    with as_user_error(f"export: cannot write below {base}"), new_folder(target) as temporary:
        signatures = servable.signatures()
        # A served model needs no gradients, and ours could add functions that no server needs.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(servable, str(temporary), signatures=signatures, options=options)
        if streamed is not None:
            streamed.write(temporary, "table")
        write_column_forms(temporary, schema)
        _write_extra(temporary / EXTRA, schema, warmup)
        if requests is not None:
            path = temporary / EXTRA / "tf_serving_warmup_requests"
            write_warmup(path, requests, base.resolve().name, servable.has_attention)
        size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
        if target.exists():
            raise UserError(f"export: version {chosen} came into being in {base} meanwhile; run export again")
    return ExportSummary(
        path=str(target),
        base=str(base),
        version=chosen,
        checkpoint=which if folder else "in memory",
        schema_id=schema.id,
        signatures={name: sorted(function.structured_outputs) for name, function in signatures.items()},
        raw_columns=list(schema.raw_columns),
        output=servable.score_name,
        slots=schema.num_slots,
        pairs=len(schema.pairs),
        feature_size=schema.feature_size,
        streamed=streamed is not None,
        logit_offset=model.bias_offset,
        half=change,
        warmup=warmup,
        bytes=size,
    )


def _checked_schema(model: CTRModel, schema: ResolvedSchema | None, warmup: WarmupRows) -> ResolvedSchema:
    """The schema of a model in memory, after a check that they belong together."""
    if not isinstance(schema, ResolvedSchema):
        raise UserError("export: a model in memory needs schema=, the resolved schema of its data (data.schema)")
    if warmup == "log":
        raise UserError('export: warmup="log" is for a run, which keeps rows of its log; take "made-up" or "none"')
    if (model.num_slots, model.feature_size) != (schema.num_slots, schema.feature_size):
        raise UserError(
            f"export: the model has {model.num_slots} slots and {model.feature_size:,} ids, schema "
            f"{schema.spec.name!r} {schema.num_slots} and {schema.feature_size:,}: they do not belong together"
        )
    return schema


def versions(base: Path) -> list[int]:
    """The versions in a base folder, ascending, as for the server."""
    return sorted(version_folders(base)) if base.is_dir() else []


def _version(base: Path, asked: int | None) -> int:
    there = versions(base)
    version = max(there, default=0) + 1 if asked is None else asked
    if not 1 <= version <= LARGEST:
        raise UserError(f"export: version is {version}; it must be 1 or more, and at most {LARGEST}")
    if version in there:
        raise UserError(
            f"export: version {version} exists in {base}; choose another, or none for version {there[-1] + 1}"
        )
    return version


def _write_extra(folder: Path, schema: ResolvedSchema, warmup: WarmupRows) -> None:
    folder.mkdir()
    described = {
        "schema_id": schema.id,
        "warmup": warmup,
        "slots": [slot.name for slot in schema.slots],
        "pairs": [
            {"name": name, "slots": [int(i), int(j)]}
            for name, (i, j) in zip(schema.pair_names, schema.pairs, strict=True)
        ],
        "assets": {file.name: sha256_of(file) for file in sorted(folder.with_name("assets").glob("*"))},
    }
    (folder / "pairs.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
