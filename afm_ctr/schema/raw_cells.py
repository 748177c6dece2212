"""Cells as fields read them, in Python; follows the rules of ``afm_ctr.features.cell_ops``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from afm_ctr.schema.fields import (
    CROSS_SEPARATOR,
    CategoricalField,
    CrossField,
    DeclaredIds,
    WordField,
    column_of,
)
from afm_ctr.schema.spec import FeatureSchema


class RawCells:
    """The raw columns of some rows as each field reads them.

    Args:
        columns: the cells of each column; at least one column.
    """

    def __init__(self, spec: FeatureSchema, columns: Mapping[str, Iterable[bytes]]) -> None:
        self._spec = spec
        self._columns = columns
        self._made: dict[tuple[str, tuple[bytes, ...]], list[bytes]] = {}

    def of(self, column: str, missing: tuple[bytes, ...]) -> list[bytes]:
        """A column with b"" in place of the texts of ``missing``."""
        if (column, missing) not in self._made:
            cells, nothing = list(self._columns[column]), frozenset(missing)
            self._made[column, missing] = [b"" if cell in nothing else cell for cell in cells] if nothing else cells
        return self._made[column, missing]

    def words(self, field: WordField) -> list[bytes]:
        """The cells of a categorical field; of a cross its columns' joined texts, empty if any of them is."""
        missing = self._spec.missing_of(field)
        if not isinstance(field, CrossField):
            return self.of(column_of(field), missing)
        parts = zip(*(self.of(name, missing) for name in field.columns), strict=True)
        return [CROSS_SEPARATOR.join(row) if all(row) else b"" for row in parts]

    def values(self, field: WordField, words: Iterable[bytes]) -> Iterator[list[bytes]]:
        """The values in each of some :meth:`words`; in a multi-valued cell all that have a slot, with repeats."""
        if not isinstance(field, CategoricalField) or field.separator is None:
            yield from ([text] if text else [] for text in words)
            return
        separator, missing = field.separator.encode(), frozenset(self._spec.missing_of(field))
        strips = isinstance(self._spec.space_of(field).space, DeclaredIds)
        for text in words:
            said = (piece for piece in text.split(separator) if piece not in missing)
            found = [piece for one in said if (piece := one.strip() if strips else one)]
            yield found[: field.max_values] if field.keep == "first" else found[-field.max_values :]
