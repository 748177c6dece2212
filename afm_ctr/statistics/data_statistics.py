"""The statistics of a data set, as stored in its manifest."""

from __future__ import annotations

from typing import Final, NamedTuple

from pydantic import Field

from afm_ctr.io.validation import Strict

TOP_VALUES: Final = 32
PERCENTILES: Final = 100


class TopValue(NamedTuple):
    """A value, the number of sampled rows with it, and the number of positive ones among them."""

    value: str
    rows: int
    positives: int


class FieldStatistics(Strict):
    """Statistics of one field.

    ``count``, ``missing`` and ``missing_positives`` are exact counts over all rows of the split; statistics of values
    come from the sampled rows (see :class:`DataStatistics`).
    """

    name: str
    kind: str
    encoding: str
    """The encoding's kind; of a libfm field ``libfm``."""
    count: int = Field(ge=0)
    """Rows in which the field has a value."""
    missing: int = Field(ge=0)
    """Rows without a value; scaled up from the sample if missing cells are replaced by a number."""
    missing_positives: int = Field(default=0, ge=0)
    """Positive rows among ``missing``; scaled up likewise."""
    distinct: int = Field(ge=0)
    """Distinct values of all rows: see :mod:`afm_ctr.statistics.distinct`."""
    exact: bool
    """Whether ``distinct`` is a count, not an estimate."""
    values: int = Field(ge=0)
    """Values in the sampled rows; rows may have several values of a multi-valued field."""
    top: list[TopValue]
    """The most frequent values of the sampled rows, by rows and then by text; at most ``TOP_VALUES``."""
    complete: bool
    """Whether ``top`` contains every value of the sampled rows."""
    quantiles: list[float] = Field(default_factory=list)
    """Of a numeric field: the numbers at 0 %, 1 %, …, 100 % of the sampled rows in ascending order."""

    @property
    def rows(self) -> int:
        """Rows of the split."""
        return self.count + self.missing

    @property
    def missing_share(self) -> float:
        """Share of missing rows."""
        return self.missing / self.rows if self.rows else 0.0


class DataStatistics(Strict):
    """Statistics of all fields of a split.

    A row is sampled if the hash of its number among all data rows is below a limit that yields about ``SAMPLE_ROWS``
    rows; if there are fewer rows, all are sampled. So the sample does not depend on how the work is divided.
    """

    split: str
    rows: int = Field(ge=0)
    positives: int | None
    """Rows whose label is greater than 0; ``None``: unlabelled data."""
    sampled: int = Field(ge=0)
    """Sampled rows, which values, quantiles and counts of values come from."""
    sampled_positives: int = Field(ge=0)
    fields: list[FieldStatistics]

    def field(self, name: str) -> FieldStatistics | None:
        """A field by name; ``None`` if there is no such field."""
        return next((field for field in self.fields if field.name == name), None)
