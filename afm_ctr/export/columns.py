"""Metadata of the columns of the signature ``raw``, with which a client turns typed values into their texts."""

from __future__ import annotations

from pathlib import Path

from tensorflow.core.protobuf import saved_model_pb2

from afm_ctr.rawlog.tokenizers import list_separators
from afm_ctr.rawlog.types import learned
from afm_ctr.schema import CategoricalField, JsonlFormat, ParquetFormat, ResolvedSchema, column_of
from serving.cell_text import ColumnForm


def column_forms(schema: ResolvedSchema) -> dict[str, ColumnForm]:
    """For every raw column, whether whole numbers may come as floats, and how lists are joined."""
    return {name: ColumnForm(_takes_floats(schema, name), _separators(schema, name)) for name in schema.raw_columns}


def write_column_forms(folder: Path, schema: ResolvedSchema) -> None:
    """Write them into a SavedModel, as names of the dimensions of the signature's inputs."""
    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for graph in model.meta_graphs:
        for name, form in column_forms(schema).items():
            graph.signature_def["raw"].inputs[name].tensor_shape.dim[0].name = form.to_name()
    path.write_bytes(model.SerializeToString(deterministic=True))


def _takes_floats(schema: ResolvedSchema, column: str) -> bool:
    """True for numbers and times; for words only if they were learned as floats and never as whole numbers."""
    found = learned(schema, column)
    return not found.words or (found.floats and not found.whole)


def _separators(schema: ResolvedSchema, column: str) -> tuple[bytes, ...]:
    if isinstance(schema.spec.format, (JsonlFormat, ParquetFormat)):
        return list_separators(schema.spec, column)
    found = dict.fromkeys(
        field.separator.encode()
        for field in schema.spec.fields
        if isinstance(field, CategoricalField) and field.separator and column_of(field) == column
    )
    return tuple(found) if len(found) == 1 else ()
