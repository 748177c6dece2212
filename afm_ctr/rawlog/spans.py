"""Cells as spans of one text, so that cells that are only encoded need no Python object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from afm_ctr.io.texts import Texts
from serving.tensors import objects

LARGEST_TEXT = 2**31 - 1
_BYTES = [bytes([byte]) for byte in range(256)]


@dataclass(frozen=True)
class CellSpans:
    """The cells of n rows."""

    text: bytes  # contains the cells
    starts: np.ndarray  # int32 [n, columns], start of each cell
    ends: np.ndarray  # int32 [n, columns], end of each cell, exclusive
    places: Mapping[str, int]  # index of each column, by name

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> CellSpans | None:
        """Spans of columns of bytes, at least one; None if they are too long together."""
        cells = [cell for column in columns.values() for cell in column]
        sizes = np.fromiter(map(len, cells), np.int64, len(cells))
        if sizes.sum() > LARGEST_TEXT:
            return None
        last = np.cumsum(sizes)
        starts, ends = (
            np.ascontiguousarray(edges.reshape(len(columns), -1).T, np.int32) for edges in (last - sizes, last)
        )
        return cls(b"".join(cells), starts, ends, {name: at for at, name in enumerate(columns)})

    def cells(self, column: str) -> list[bytes]:
        """The cells of a column."""
        text, at = self.text, self.places[column]
        if (self.ends[:, at] - self.starts[:, at] == 1).all():  # mostly labels
            return [_BYTES[byte] for byte in np.frombuffer(text, np.uint8)[self.starts[:, at]].tolist()]
        return [text[a:b] for a, b in zip(self.starts[:, at].tolist(), self.ends[:, at].tolist(), strict=True)]

    def columns(self, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
        """The cells of some columns in some rows: object arrays [m] of bytes."""
        places = [self.places[name] for name in names]
        starts, ends = (edges[rows][:, places].T.ravel().tolist() for edges in (self.starts, self.ends))
        text = self.text
        cells = objects([text[a:b] for a, b in zip(starts, ends, strict=True)]).reshape(len(names), len(rows))
        return dict(zip(names, cells, strict=True))

    def texts(self, names: Sequence[str]) -> Texts:
        """The cells of some columns, row by row: [n · columns]."""
        places = [self.places[name] for name in names]
        return Texts(
            self.text, *(edges[:, places].ravel().astype(np.int64) for edges in (self.starts, self.ends))
        ).packed()

    def with_cells(self, rows: np.ndarray, columns: Mapping[str, Sequence[bytes]]) -> CellSpans | None:
        """Replace the cells of some rows, by index; None if the text becomes too long."""
        cells = [cell for name in self.places for cell in columns[name]]
        text = b"".join([self.text, *cells])
        if len(text) > LARGEST_TEXT:
            return None
        sizes = np.fromiter(map(len, cells), np.int64, len(cells))
        last = len(self.text) + np.cumsum(sizes)
        starts, ends = self.starts.copy(), self.ends.copy()
        for edges, found in ((starts, last - sizes), (ends, last)):
            edges[rows[:, None], list(self.places.values())] = found.reshape(len(self.places), len(rows)).T
        return replace(self, text=text, starts=starts, ends=ends)

    def take(self, rows: np.ndarray | list[int]) -> CellSpans:
        """Select rows by index."""
        return replace(self, starts=self.starts[rows], ends=self.ends[rows])
