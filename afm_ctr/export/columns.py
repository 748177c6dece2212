"""What the signature ``raw`` says of its columns, so that a client can turn typed values into their texts."""

from __future__ import annotations

import re
from pathlib import Path

from tensorflow.core.protobuf import saved_model_pb2

from afm_ctr.rawlog.cutting import list_separators
from afm_ctr.schema import (
    CategoricalField,
    JsonlFormat,
    LibfmField,
    ParquetFormat,
    ResolvedSchema,
    WordField,
    column_of,
    columns_of,
)
from serving.cells import ColumnForm

_WHOLE, _FLOAT = re.compile(rb"-?[0-9]+"), re.compile(rb"-?[0-9]+\.0")


def column_forms(schema: ResolvedSchema) -> dict[str, ColumnForm]:
    """Of every raw column, whether whole numbers may come as floats, and how lists are joined."""
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
    """Numbers and times do; words only where they were learned as floats and never as whole numbers."""
    spaces = {
        schema.spec.space_of(field).name
        for field in schema.spec.fields
        if isinstance(field, WordField) and column in columns_of(field)
    }
    if not spaces:
        return not any(isinstance(field, LibfmField) for field in schema.spec.fields)
    learned = [schema.vocabularies.get(space, ()) for space in spaces]
    whole = any(_WHOLE.fullmatch(entry) for entries in learned for entry in entries)
    return not whole and all(any(_FLOAT.fullmatch(entry) for entry in entries) for entries in learned)


def _separators(schema: ResolvedSchema, column: str) -> tuple[bytes, ...]:
    if isinstance(schema.spec.format, (JsonlFormat, ParquetFormat)):
        return list_separators(schema.spec, column)
    found = dict.fromkeys(
        field.separator.encode()
        for field in schema.spec.fields
        if isinstance(field, CategoricalField) and field.separator and column_of(field) == column
    )
    return tuple(found) if len(found) == 1 else ()
