"""Cells to numbers and hash buckets, and rows to records: ops in C++ for preparation, and when they can be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from afm_ctr.io.texts import Texts
from afm_ctr.native.op import asked_for, load

if TYPE_CHECKING:
    import tensorflow as tf

PREPARING = "AFM_CTR_PREPARING"

# Of n rows: a number each, None where no row has one; and (int64 [n], bool [n]): values, and which rows have one.
Column = np.ndarray | None
Groups = tuple[np.ndarray, np.ndarray] | None
# The columns of a cell (several of a cross), and the texts that count as empty in each.
CellSource = tuple[Sequence[int], Sequence[bytes]]


def prepares() -> bool:
    """Whether rows are prepared by the ops: wherever their library loads.

    The environment variable ``AFM_CTR_PREPARING`` asks for one form: ``native`` or ``python``.

    Raises:
        UserError: the variable asks for what is not there.
    """
    return asked_for(PREPARING, "native", "python", load().reason)


class Cells:
    """The cells of n rows in a text, for the ops. They give what TensorFlow's ops on the texts give.

    Args:
        text: uint8.
        starts: int32 [n, width], the first byte of each cell.
        ends: int32 [n, width], the byte behind its last.
    """

    def __init__(self, text: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor) -> None:
        self._inputs = {"text": text, "starts": starts, "ends": ends}

    def _of(self, sources: Sequence[CellSource]) -> dict[str, Any]:
        return self._inputs | {
            "columns": [column for columns, _ in sources for column in columns],
            "parts": [len(columns) for columns, _ in sources],
            "missing": [text for _, missing in sources for text in missing],
            "missings": [len(missing) for _, missing in sources],
        }

    def numbers(self, sources: Sequence[CellSource]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """As :func:`afm_ctr.features.cell_ops.parse_numbers` has them, [sources, n]."""
        values, ok, bad = load().module.afm_ctr_cell_numbers(**self._of(sources))
        return self._shaped(sources, values), self._shaped(sources, ok), self._shaped(sources, bad)

    def buckets(self, sources: Sequence[CellSource], buckets: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Fingerprint64 mod ``buckets``, int64, and whether there is a cell, bool: [sources, n]."""
        bucket, present = load().module.afm_ctr_cell_buckets(**self._of(sources), buckets=buckets)
        return self._shaped(sources, bucket), self._shaped(sources, present)

    def texts(self, sources: Sequence[CellSource]) -> tf.Tensor:
        """The cells: string [sources, n]."""
        return self._shaped(sources, load().module.afm_ctr_cell_texts(**self._of(sources)))

    @staticmethod
    def rows(slots: Sequence[Any], order: np.ndarray, own_ids: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        """As :meth:`afm_ctr.features.cell_ops.FieldCells.laid_out` has them."""
        ids, values = load().module.afm_ctr_lay_rows(
            ids=[part.ids for part in slots],
            values=[part.vals for part in slots],
            present=[part.present for part in slots],
            order=order.tolist(),
            own_ids=own_ids.tolist(),
        )
        ids.set_shape([None, len(order)])
        values.set_shape([None, len(order)])
        return ids, values

    @staticmethod
    def _shaped(sources: Sequence[CellSource], found: tf.Tensor) -> tf.Tensor:
        found.set_shape([len(sources), None])
        return found


def scan_json(
    joined: bytes, rows: int, keys: Mapping[str, Sequence[bytes]]
) -> tuple[bytes, np.ndarray, np.ndarray, np.ndarray]:
    """Where lines that are JSON objects have the values of some keys.

    Args:
        joined: UTF-8, the lines with line ends between them.
        rows: how many lines.
        keys: with what no element of a list may hold; the first joins them. None: a list is no cell.

    Returns:
        The text, which is ``joined`` with what cells do not hold as it stands there behind it; the first byte of each
        value in it and the byte behind its last, int32 [rows, keys]; and which lines were read, bool [rows]: not
        those that are no such objects, or that hold another value for one of the keys.
    """
    import tensorflow as tf

    with tf.device("/CPU:0"):
        starts, ends, plain, more = load().module.afm_ctr_scan_json(
            text=np.frombuffer(joined, np.uint8),
            rows=rows,
            keys=list(keys),
            separators=[text for separators in keys.values() for text in separators],
            counts=[len(separators) for separators in keys.values()],
        )
    written = memoryview(more)
    text = b"".join([joined, written]) if len(written) else joined
    return text, np.asarray(memoryview(starts)), np.asarray(memoryview(ends)), np.asarray(memoryview(plain))


def frame_examples(
    ids: np.ndarray, values: np.ndarray, labels: Column, weights: Column, groups: Groups, keys: Sequence[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """The frames of :func:`afm_ctr.records.framed_examples`, whose arguments these are, checked.

    Returns:
        The frames, uint8, and the bytes of each, int64 [n].
    """
    import tensorflow as tf

    none, texts = np.zeros(0, np.float32), Texts.of(keys)
    with tf.device("/CPU:0"):
        frames, sizes = load().module.afm_ctr_frame_examples(
            feature_ids=ids,
            feature_vals=values,
            label=none if labels is None else labels,
            weight=none if weights is None else weights,
            group=np.zeros(0, np.int64) if groups is None else groups[0],
            has_group=np.zeros(0, bool) if groups is None else groups[1],
            key_text=np.frombuffer(texts.text, np.uint8),
            key_starts=texts.starts,
            key_ends=texts.ends,
        )
    return np.asarray(memoryview(frames)), np.asarray(memoryview(sizes))
