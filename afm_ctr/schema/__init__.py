"""What a row holds (:class:`FeatureSchema`), and what has been decided about its ids (:class:`ResolvedSchema`).

Nothing here imports TensorFlow.
"""

from .base import Frozen
from .boundaries import log_square_boundaries, quantile_boundaries
from .facts import Analysis, NumberFacts
from .fields import (
    BucketEncoding,
    CategoricalField,
    DeclaredIds,
    HashSpace,
    LibfmField,
    MissingValue,
    NumericField,
    ValueEncoding,
    VocabularySpace,
    slots_of,
)
from .formats import Column, DelimitedFormat, Label, LibfmFormat, NegativeSampling
from .reading import read_yaml, validate
from .resolve import resolve
from .resolved import IdRange, NumericStatistics, ResolvedSchema, Slot, missing_space
from .spec import LIBFM_COLUMN, FeatureSchema, FieldSpace, column_of, fits_name, needs_statistics

__all__ = [
    "LIBFM_COLUMN",
    "Analysis",
    "BucketEncoding",
    "CategoricalField",
    "Column",
    "DeclaredIds",
    "DelimitedFormat",
    "FeatureSchema",
    "FieldSpace",
    "Frozen",
    "HashSpace",
    "IdRange",
    "Label",
    "LibfmField",
    "LibfmFormat",
    "MissingValue",
    "NegativeSampling",
    "NumberFacts",
    "NumericField",
    "NumericStatistics",
    "ResolvedSchema",
    "Slot",
    "ValueEncoding",
    "VocabularySpace",
    "column_of",
    "fits_name",
    "log_square_boundaries",
    "missing_space",
    "needs_statistics",
    "quantile_boundaries",
    "read_yaml",
    "resolve",
    "slots_of",
    "validate",
]
