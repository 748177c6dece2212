"""The statistics of a data set as its manifest holds them."""

from __future__ import annotations

from typing import Final, NamedTuple

from pydantic import Field

from afm_ctr.io.validation import Strict

TOP_VALUES: Final = 32
PERCENTILES: Final = 100


class TopValue(NamedTuple):
    """A value with the sampled rows that hold it, and how many of those are positive."""

    value: str
    rows: int
    positives: int


class FieldStatistics(Strict):
    """One field.

    ``count``, ``missing`` and ``missing_positives`` are exact counts over all rows of the split; what speaks of
    values comes from the sampled rows (see :class:`DataStatistics`).
    """

    name: str
    kind: str
    encoding: str
    """The encoding's kind; of a libfm field ``libfm``."""
    count: int = Field(ge=0)
    """Rows in which the field has a value."""
    missing: int = Field(ge=0)
    """Rows in which it has none. Of a field whose missing cells count as a number: scaled up from the sample."""
    missing_positives: int = Field(default=0, ge=0)
    """Positive rows among ``missing``; of such a field scaled up as well."""
    distinct: int = Field(ge=0)
    """Distinct values of all rows: see :mod:`afm_ctr.statistics.distinct`."""
    exact: bool
    """Whether ``distinct`` was counted and not estimated."""
    values: int = Field(ge=0)
    """Values in the sampled rows; of a multi-valued field there may be several a row."""
    top: list[TopValue]
    """The most frequent values of the sampled rows, by rows and then by text; at most ``TOP_VALUES``."""
    complete: bool
    """Whether ``top`` names every value that the sampled rows hold."""
    quantiles: list[float] = Field(default_factory=list)
    """Of a numeric field: the numbers at 0 %, 1 %, …, 100 % of the sampled rows in ascending order."""

    @property
    def rows(self) -> int:
        """Rows of the split."""
        return self.count + self.missing

    @property
    def missing_share(self) -> float:
        """Missing rows of all rows."""
        return self.missing / self.rows if self.rows else 0.0


class DataStatistics(Strict):
    """All fields of a split.

    A row is sampled if the hash of its number among all data rows lies below a limit that makes about
    ``SAMPLE_ROWS`` of them; with fewer rows than that, all are. So the same rows are sampled however the work is
    divided.
    """

    split: str
    rows: int = Field(ge=0)
    positives: int | None
    """Rows whose label is greater than 0; ``None``: unlabelled data."""
    sampled: int = Field(ge=0)
    """Rows from which values, quantiles and counts of values come."""
    sampled_positives: int = Field(ge=0)
    fields: list[FieldStatistics]

    def field(self, name: str) -> FieldStatistics | None:
        """A field by name; ``None``: there is none."""
        return next((field for field in self.fields if field.name == name), None)
