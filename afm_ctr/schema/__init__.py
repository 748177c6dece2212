"""Feature schemas: the user's (:class:`FeatureSchema`), and with ids decided (:class:`ResolvedSchema`).

Must not import TensorFlow.
"""

from afm_ctr.io.validation import Strict, validate
from afm_ctr.io.yaml import read_yaml
from afm_ctr.schema.analysis_results import Analysis, NumberFacts
from afm_ctr.schema.boundaries import log_square_boundaries, quantile_boundaries
from afm_ctr.schema.fields import (
    CROSS_SEPARATOR,
    LIBFM_COLUMN,
    BucketEncoding,
    CategoricalField,
    CrossField,
    DeclaredIds,
    HashSpace,
    LibfmField,
    MissingValue,
    NumericField,
    OneField,
    ValueEncoding,
    VocabularySpace,
    WordField,
    column_of,
    columns_of,
    slots_of,
)
from afm_ctr.schema.formats import (
    MAX_LINE_BYTES,
    Column,
    DelimitedFormat,
    JsonlFormat,
    Label,
    LibfmFormat,
    NegativeSampling,
    ParquetFormat,
)
from afm_ctr.schema.resolve import resolve
from afm_ctr.schema.resolved import IdRange, NumericStatistics, ResolvedSchema, Slot, missing_space
from afm_ctr.schema.side import FLAG_SEPARATOR, JoinedColumn, JoinKey, SideTable
from afm_ctr.schema.spec import FeatureSchema, FieldSpace, fits_name, needs_statistics
from afm_ctr.schema.times import PART_SIZES, TimeField, TimeLayout, time_layout

__all__ = [
    "CROSS_SEPARATOR",
    "FLAG_SEPARATOR",
    "LIBFM_COLUMN",
    "MAX_LINE_BYTES",
    "PART_SIZES",
    "Analysis",
    "BucketEncoding",
    "CategoricalField",
    "Column",
    "CrossField",
    "DeclaredIds",
    "DelimitedFormat",
    "FeatureSchema",
    "FieldSpace",
    "HashSpace",
    "IdRange",
    "JoinKey",
    "JoinedColumn",
    "JsonlFormat",
    "Label",
    "LibfmField",
    "LibfmFormat",
    "MissingValue",
    "NegativeSampling",
    "NumberFacts",
    "NumericField",
    "NumericStatistics",
    "OneField",
    "ParquetFormat",
    "ResolvedSchema",
    "SideTable",
    "Slot",
    "Strict",
    "TimeField",
    "TimeLayout",
    "ValueEncoding",
    "VocabularySpace",
    "WordField",
    "column_of",
    "columns_of",
    "fits_name",
    "log_square_boundaries",
    "missing_space",
    "needs_statistics",
    "quantile_boundaries",
    "read_yaml",
    "resolve",
    "slots_of",
    "time_layout",
    "validate",
]
