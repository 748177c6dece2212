"""Preparation of lines, cells and records by a C++ library that needs no TensorFlow, and whether it can be used."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from afm_ctr.io.texts import Texts
from afm_ctr.native.library import library_path, plain_library
from afm_ctr.native.op import asked_for, why_not_there

PREPARING = "AFM_CTR_PREPARING"

# Of n rows: one number each, or None without any; and (int64 [n], bool [n]): values, and which rows have one.
Column = np.ndarray | None
Groups = tuple[np.ndarray, np.ndarray] | None


def open_library() -> tuple[Any, str]:
    """Open the library, or return the reason why it cannot be opened."""
    path = plain_library(library_path())
    if why := why_not_there(path):
        return None, why
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"{path.name} does not load: {str(error).splitlines()[0]}"
    for name in ("afm_ctr_frames_room", "afm_ctr_frame_examples", "afm_ctr_scan_json"):
        getattr(library, name).restype = ctypes.c_int64
    for name in ("afm_ctr_encode_rows", "afm_ctr_cut_lines"):
        getattr(library, name).restype = ctypes.c_bool
    return library, ""


_load = cache(open_library)


def prepares() -> bool:
    """Whether the library prepares rows: if it loads.

    The environment variable ``AFM_CTR_PREPARING`` chooses a form: ``native`` or ``python``.

    Raises:
        UserError: the variable chooses a form that is not available.
    """
    return asked_for(PREPARING, "native", "python", _load()[1])


def _at(array: np.ndarray | None, kind: Any) -> ctypes.c_void_p | None:
    """Pointer to an array's data for the library. Raises ValueError: wrong type, or not contiguous."""
    if array is None:
        return None
    if array.dtype != kind or not array.flags.c_contiguous:
        raise ValueError(f"an array is {array.dtype}, not {np.dtype(kind)}, or its numbers do not lie side by side")
    return ctypes.c_void_p(array.ctypes.data)


def _joined(texts: Sequence[bytes]) -> tuple[bytes, np.ndarray]:
    """Texts joined, and the end of each: int64 [n]."""
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    return b"".join(texts), np.cumsum(sizes)


def cut_lines(
    joined: bytes, delimiter: bytes, rows: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Cut lines at each delimiter: starts and ends of cells, int32 [rows, width]; how many a line has, int64 [rows].

    A line with another number of cells gets empty ones.

    Args:
        joined: the lines with line ends between them, below 2 GiB.
        delimiter: one byte.

    Returns:
        None where lines hold line ends.
    """
    starts, ends = (np.empty((rows, width), np.int32) for _ in range(2))
    counts = np.empty(rows, np.int64)
    cut = _load()[0].afm_ctr_cut_lines(
        joined,
        ctypes.c_int64(len(joined)),
        ctypes.c_char(delimiter),
        ctypes.c_int64(rows),
        ctypes.c_int64(width),
        _at(starts, np.int32),
        _at(ends, np.int32),
        _at(counts, np.int64),
    )
    return (starts, ends, counts) if cut else None


def fingerprints(texts: Sequence[bytes]) -> np.ndarray:
    """Fingerprint64 (farmhash) of byte strings: uint64 [n]."""
    text, ends = _joined(texts)
    found = np.empty(len(texts), np.uint64)
    _load()[0].afm_ctr_fingerprints(text, _at(ends, np.int64), ctypes.c_int64(len(texts)), _at(found, np.uint64))
    return found


def parse_numbers(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Values, float64 [n], nan for other texts, and which texts are bad, bool [n]: neither finite nor empty."""
    text, ends = _joined(texts)
    values, bad = np.empty(len(texts)), np.empty(len(texts), bool)
    count = ctypes.c_int64(len(texts))
    _load()[0].afm_ctr_parse_numbers(text, _at(ends, np.int64), count, _at(values, np.float64), _at(bad, bool))
    return values, bad


def bad_times(texts: Sequence[bytes], form: str, layout: bytes) -> np.ndarray:
    """Which texts, bool [n], are neither a time nor empty. The form and its layout are those of :class:`RowField`."""
    text, ends = _joined(texts)
    bad = np.empty(len(texts), bool)
    _load()[0].afm_ctr_bad_times(
        text,
        _at(ends, np.int64),
        ctypes.c_int64(len(texts)),
        ctypes.c_int64(_FORMS.index(form)),
        layout,
        ctypes.c_int64(len(layout)),
        _at(bad, bool),
    )
    return bad


class _Texts(ctypes.Structure):
    _fields_ = [("text", ctypes.c_char_p), ("ends", ctypes.c_void_p), ("count", ctypes.c_int64)]


class _Field(ctypes.Structure):
    """``Field`` of rows.cc."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("column", ctypes.c_void_p),
        ("missing", _Texts),
        ("own", ctypes.c_int64),
        ("ranges", ctypes.c_int64),
        ("start", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("boundaries", ctypes.c_void_p),
        ("smalls", ctypes.c_int64),
        ("small", ctypes.c_void_p),
        ("mean", ctypes.c_double),
        ("std", ctypes.c_double),
        ("fill", ctypes.c_double),
        ("has_fill", ctypes.c_int64),
        ("key", ctypes.c_uint64 * 2),
        ("entries", _Texts),
        ("places", ctypes.c_int64),
        ("place", ctypes.c_void_p),
        ("slot", ctypes.c_int64),
        ("slots", ctypes.c_int64),
        ("separator", ctypes.c_char_p),
        ("separator_size", ctypes.c_int64),
        ("last", ctypes.c_int64),
        ("mean_of_values", ctypes.c_int64),
        ("multi", ctypes.c_int64),
        ("form", ctypes.c_int64),
        ("part", ctypes.c_int64),
        ("layout", ctypes.c_char_p),
        ("layout_size", ctypes.c_int64),
        ("first", ctypes.c_int64),
    ]


KINDS = ("buckets", "value", "logarithm", "hash", "keyed hash", "vocabulary", "ids", "time", "libfm")
_FORMS = ("layout", "iso", "epoch", "epoch_ms", "clock")
_PARTS = ("hour", "weekday", "weekend", "day", "month")
_SMALL = 1024


class TextIndex:
    """Index of fewer than 2^31 distinct byte strings."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.text, self.ends = _joined(texts)
        self.place = np.zeros(2 << len(texts).bit_length(), np.int32)
        _load()[0].afm_ctr_index_texts(
            self.text,
            _at(self.ends, np.int64),
            ctypes.c_int64(len(texts)),
            ctypes.c_int64(len(self.place)),
            _at(self.place, np.int32),
        )


@dataclass(frozen=True)
class RowField:
    """How a field is encoded."""

    kind: str  # one of ``KINDS``
    columns: tuple[str, ...]  # it reads; several are a cross
    missing: tuple[bytes, ...]  # texts that count as an empty cell
    own: int  # the id where it is missing; 0: it takes no part then
    starts: np.ndarray  # int64 [ranges], the first local id of each range of its ids
    shifts: np.ndarray  # int64 [ranges], what is added to local ids of that range
    # Buckets of a hash, declared ids, rows of values that a vocabulary does not know, ids of libfm text.
    size: int = 0
    boundaries: np.ndarray | None = None  # float64, ascending, of buckets
    mean: float = 0.0  # of a value
    std: float = 1.0  # of a value
    fill: float | None = None  # the number of a missing one; None: it has none
    key: bytes = bytes(16)  # of a keyed hash
    entries: TextIndex | None = None  # of a vocabulary
    slots: int = 1
    separator: bytes = b""  # of the values in a cell; empty: the cell is one
    last: bool = False  # whether of more values than slots the last ones are kept
    mean_of_values: bool = False  # whether each of n values counts 1/n
    form: str = "iso"  # of a time: a named one, or "layout"
    layout: bytes = b""  # as :func:`afm_ctr.schema.times.form_of` has it
    part: str = "hour"  # of a time
    first: int = 0  # of the ids of libfm text


class RowEncoder:
    """Cells in a text to ids and values.

    Args:
        fields: in the order of their slots.
        places: of the columns among the cells of a row.
    """

    def __init__(self, fields: Sequence[RowField], places: Mapping[str, int]) -> None:
        self._held: list[Any] = []
        self._slots = self._multis = 0
        self._fields = (_Field * len(fields))(*[self._field(field, places) for field in fields])
        self._least = max(places[name] for field in fields for name in field.columns)

    def _field(self, field: RowField, places: Mapping[str, int]) -> _Field:
        columns = np.array([places[name] for name in field.columns], np.int32)
        text, ends = _joined(field.missing)
        size = field.size if field.boundaries is None else len(field.boundaries)
        small = None
        if field.boundaries is not None:  # a lookup table for small integers avoids most searches
            # The library treats subnormal boundaries as 0.
            normal = np.abs(field.boundaries) >= np.finfo(np.float64).tiny
            small = np.searchsorted(field.boundaries * normal, np.arange(_SMALL), "right").astype(np.int32)
        entries, layout = field.entries or TextIndex([]), field.layout
        self._held += [field, columns, text, ends, small, entries]
        slot, multi = self._slots, self._multis
        self._slots += field.slots
        self._multis += field.separator != b""
        return _Field(
            kind=KINDS.index(field.kind),
            columns=len(columns),
            column=_at(columns, np.int32),
            missing=_Texts(text, _at(ends, np.int64), len(ends)),
            own=field.own,
            ranges=len(field.starts),
            start=_at(field.starts, np.int64),
            shift=_at(field.shifts, np.int64),
            size=size,
            boundaries=_at(field.boundaries, np.float64),
            smalls=0 if small is None else _SMALL,
            small=_at(small, np.int32),
            mean=field.mean,
            std=field.std,
            fill=field.fill or 0.0,
            has_fill=field.fill is not None,
            key=(ctypes.c_uint64 * 2)(*np.frombuffer(field.key, "<u8").tolist()),
            entries=_Texts(entries.text, _at(entries.ends, np.int64), len(entries.ends)),
            places=len(entries.place),
            place=_at(entries.place, np.int32),
            slot=slot,
            slots=field.slots,
            separator=field.separator,
            separator_size=len(field.separator),
            last=field.last,
            mean_of_values=field.mean_of_values,
            multi=multi,
            form=_FORMS.index(field.form),
            part=_PARTS.index(field.part),
            layout=layout,
            layout_size=len(layout),
            first=field.first,
        )

    def __call__(
        self, text: bytes, starts: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The ids int64 and values float32, [n, slots]; which cells are bad, bool [n, fields]; and how many values of
        a cell have no slot, int32 [n, fields of several values].

        The value of a logarithm is nan where only TensorFlow can tell which of two neighbours it is.

        Args:
            text: contains the cells.
            starts: int32 [n, width], start of each cell.
            ends: int32 [n, width], end of each cell, exclusive.
        """
        rows, width = starts.shape
        if ends.shape != starts.shape or self._least >= width:
            raise ValueError(f"cells: starts {starts.shape} and ends {ends.shape} do not fit the fields")
        ids, values = np.empty((rows, self._slots), np.int64), np.empty((rows, self._slots), np.float32)
        bad, cut = np.empty((rows, len(self._fields)), bool), np.empty((rows, self._multis), np.int32)
        sane = _load()[0].afm_ctr_encode_rows(
            self._fields,
            ctypes.c_int64(len(self._fields)),
            ctypes.c_int64(self._slots),
            ctypes.c_int64(self._multis),
            text,
            ctypes.c_int64(len(text)),
            _at(np.ascontiguousarray(starts), np.int32),
            _at(np.ascontiguousarray(ends), np.int32),
            ctypes.c_int64(rows),
            ctypes.c_int64(width),
            _at(ids, np.int64),
            _at(values, np.float32),
            _at(bad, bool),
            _at(cut, np.int32),
        )
        if not sane:
            raise ValueError("cells: one is outside the text")
        return ids, values, bad, cut


def scan_json(
    joined: bytes, rows: int, keys: Mapping[str, Sequence[bytes]]
) -> tuple[bytes, np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the values of some keys in lines that are JSON objects.

    Args:
        joined: UTF-8, below 2 GiB, the lines separated by line ends.
        rows: number of lines.
        keys: each with the texts that no element of a list may contain, the first of which joins lists. Without any,
            lists are not supported.

    Returns:
        The text: ``joined``, followed by cells that differ from the JSON text; start and end (exclusive) of each
        value in it, int32 [rows, keys]; and which lines were read, bool [rows]: the others are not objects, or have
        an unsupported value.
    """
    names, name_ends = _joined([key.encode() for key in keys])
    separators, separator_ends = _joined([text for texts in keys.values() for text in texts])
    counts = np.array([len(texts) for texts in keys.values()], np.int64)
    starts, ends = (np.empty((rows, len(keys)), np.int32) for _ in range(2))
    plain, more = np.empty(rows, bool), ctypes.c_void_p()
    library = _load()[0]
    size = library.afm_ctr_scan_json(
        joined,
        ctypes.c_int64(len(joined)),
        ctypes.c_int64(rows),
        names,
        _at(name_ends, np.int64),
        ctypes.c_int64(len(keys)),
        separators,
        _at(separator_ends, np.int64),
        _at(counts, np.int64),
        _at(starts, np.int32),
        _at(ends, np.int32),
        _at(plain, bool),
        ctypes.byref(more),
    )
    if size < 0:
        raise MemoryError
    text = joined + ctypes.string_at(more, size) if size else joined
    library.afm_ctr_give_back(more)
    return text, starts, ends, plain


def frame_examples(
    ids: np.ndarray,
    values: np.ndarray,
    labels: Column,
    weights: Column,
    groups: Groups,
    keys: Sequence[bytes],
    order: Column = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The frames of :func:`afm_ctr.records.framed_examples`, with the same arguments, checked.

    Returns:
        The frames, uint8, and the bytes of each, int64 [n].
    """
    texts, slots, library = Texts.of(keys), ids.shape[1], _load()[0]
    rows = len(ids) if order is None else len(order)
    starts, ends = (np.ascontiguousarray(edges, np.int64) for edges in (texts.starts, texts.ends))
    shape, where = (ctypes.c_int64(rows), ctypes.c_int64(slots)), (_at(starts, np.int64), _at(ends, np.int64))
    room = library.afm_ctr_frames_room(*shape, *where, ctypes.c_int64(len(texts.text)))
    if room < 0 or len(starts) != rows or len(ends) != rows:
        raise ValueError("a key is outside its text")
    frames, sizes = np.empty(room, np.uint8), np.empty(rows, np.int64)
    group, has_group = groups or (None, None)
    written = library.afm_ctr_frame_examples(
        *shape,
        _at(ids, np.int64),
        _at(values, np.float32),
        _at(labels, np.float32),
        _at(weights, np.float32),
        _at(group, np.int64),
        _at(has_group, bool),
        texts.text,
        *where,
        _at(order, np.int64),
        _at(frames, np.uint8),
        _at(sizes, np.int64),
    )
    if written < 0:
        raise ValueError("feature_vals must be finite")
    return frames[:written], sizes
