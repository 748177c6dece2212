"""The transform once more, cell by cell in plain Python, for the tests to compare with. Slow and obvious."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
from fractions import Fraction

import numpy as np

from afm_ctr import schema as kinds

WHITE = b" \t\n\x0b\x0c\r"
NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MASK = 2**64 - 1
Found = list[tuple[int, float]]  # (local id, value) of each slot that is present
K0, K1, K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F


def fingerprint64(text: bytes) -> int:
    """Google's FarmHash Fingerprint64 of at most 64 bytes, from its published source."""

    def word(at: int, size: int) -> int:
        return int.from_bytes(text[at : at + size], "little")

    def mixed(u: int, v: int, mul: int) -> int:
        a = (u ^ v) * mul & MASK
        a ^= a >> 47
        b = (v ^ a) * mul & MASK
        b ^= b >> 47
        return b * mul & MASK

    def turned(value: int, by: int) -> int:
        return (value >> by | value << (64 - by)) & MASK

    n = len(text)
    assert n <= 64
    mul = K2 + n * 2 & MASK
    if n > 16:
        first = K1 if n <= 32 else K2
        a, b, c, d = word(0, 8) * first & MASK, word(8, 8), word(n - 8, 8) * mul & MASK, word(n - 16, 8) * K2 & MASK
        y = turned(a + b & MASK, 43) + turned(c, 30) + d & MASK
        z = mixed(y, a + turned(b + K2 & MASK, 18) + c & MASK, mul)
        if n <= 32:
            return z
        e, f = word(16, 8) * mul & MASK, word(24, 8)
        g, h = (y + word(n - 32, 8)) * mul & MASK, (z + word(n - 24, 8)) * mul & MASK
        return mixed(
            turned(e + f & MASK, 43) + turned(g, 30) + h & MASK, e + turned(f + a & MASK, 18) + g & MASK, mul
        )
    if n >= 8:
        a, b = word(0, 8) + K2 & MASK, word(n - 8, 8)
        return mixed(turned(b, 37) * mul + a & MASK, (turned(a, 25) + b) * mul & MASK, mul)
    if n >= 4:
        return mixed(n + (word(0, 4) << 3) & MASK, word(n - 4, 4), mul)
    if n:
        y = text[0] + (text[n >> 1] << 8)
        z = n + (text[n - 1] << 2)
        mix = (y * K2 ^ z * K0) & MASK
        return (mix ^ mix >> 47) * K2 & MASK
    return K2


def number(text: bytes) -> float | str | None:
    """A float, ``None`` for a missing cell, or ``"bad"``."""
    text = text.strip(WHITE)
    if not text:
        return None
    if not NUMBER.fullmatch(text):
        return "bad"
    value = float(text)
    return value if math.isfinite(value) else "bad"


def whole(text: bytes, size: int) -> int | str | None:
    text = text.strip(WHITE)
    if not text:
        return None
    if not re.fullmatch(rb"[0-9]{1,18}", text) or int(text) >= size:
        return "bad"
    return int(text)


def local_id(schema: kinds.ResolvedSchema, field: kinds.WordField, text: bytes) -> int | str | None:
    """The local id of one value, ``None`` for nothing, or ``"bad"``."""
    name, space = schema.spec.space_of(field)
    if isinstance(space, kinds.DeclaredIds):
        return whole(text, space.size)
    if not text:
        return None
    if isinstance(space, kinds.HashSpace):
        return fingerprint64(text) % space.buckets
    entries = schema.vocabularies[name]
    return space.oov + entries.index(text) if text in entries else fingerprint64(text) % space.oov


def given(schema: kinds.ResolvedSchema, field: object, cell: bytes) -> bytes:
    return b"" if cell in schema.spec.missing_of(field) else cell


def _numeric(schema: kinds.ResolvedSchema, field: kinds.NumericField, cell: bytes) -> tuple[Found, bool]:
    known = schema.statistics[field.name]
    value = number(cell)
    bad = value == "bad"
    if not isinstance(field.encoding, kinds.ValueEncoding):
        if not isinstance(value, float):
            return [], bad
        return [(sum(boundary <= value for boundary in known.boundaries), 1.0)], False

    def encoded(x: float) -> float:
        if field.encoding.log:
            x = math.copysign(math.log1p(abs(x)), x)
        with np.errstate(over="ignore"):
            return float(np.float32((x - known.mean) / known.std))

    if isinstance(value, float):
        if math.isfinite(result := encoded(value)):
            return [(0, result)], False
        bad = True
    if isinstance(field.missing, kinds.MissingValue):
        return [(0, encoded(field.missing.value))], bad
    return [], bad


UTC = datetime.UTC
ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)([T ](\d\d)(:(\d\d)(:(\d\d)([.,]\d+)?)?)?(Z|([+-])(\d\d)(:?(\d\d))?)?)?", re.ASCII
)
DIRECTIVES = {"Y": "year", "y": "year", "m": "month", "d": "day", "H": "hour", "M": "minute", "S": "second"}


def moment(form: str, text: bytes) -> datetime.datetime | int | str | None:
    """A UTC moment (or, for the epochs, whole seconds), ``None`` for a missing cell, or ``"bad"``."""
    cell = text.strip(WHITE).decode("latin-1")
    if not cell:
        return None
    if form in ("epoch", "epoch_ms"):
        if not re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]*)?", cell):
            return "bad"
        exact = Fraction(cell.removesuffix("."))
        return math.floor(exact if form == "epoch" else exact / 1000)
    if form == "clock":
        for written in ("%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M:%S %p"):
            plain = re.sub(r"(?<=:\d\d:\d\d)[.,]\d+", "", cell)
            plain = re.sub(r"(?<=\d\d) ?([ap])\.?m\.?$", r" \1m", plain, flags=re.IGNORECASE)
            with contextlib.suppress(ValueError):
                if re.fullmatch(r"\d\d?(:\d\d)+( [ap]m)?", plain, re.ASCII | re.IGNORECASE):
                    return datetime.datetime.strptime(plain, written).replace(tzinfo=UTC)
        return "bad"
    try:
        if form == "iso":
            if not (found := ISO.fullmatch(cell)):
                return "bad"
            numbers = [int(found[group] or 0) for group in (1, 2, 3, 5, 7, 9)]
            zone = datetime.timedelta(hours=int(found[13] or 0), minutes=int(found[15] or 0))
            if int(found[13] or 0) > 23 or int(found[15] or 0) > 59:
                return "bad"
            at = datetime.datetime(*numbers, tzinfo=UTC)
            return at + zone if found[12] == "-" else at - zone
        parts = {"year": 2000, "month": 1, "day": 1}
        for piece in re.findall(r"%.|[^%]", form):
            size = {1: 1, 2: 4 if piece == "%Y" else 2}[len(piece)]
            taken, cell = cell[:size], cell[size:]
            if len(piece) == 1:
                if taken != piece:
                    return "bad"
                continue
            if not re.fullmatch(rf"[0-9]{{{size}}}", taken):
                return "bad"
            number = int(taken)
            if piece == "%y":
                number += 2000 if number < 69 else 1900
            parts[DIRECTIVES[piece[1]]] = number
        return "bad" if cell else datetime.datetime(**parts, tzinfo=UTC)
    except ValueError:
        return "bad"


def _time(field: kinds.TimeField, cell: bytes) -> tuple[Found, bool]:
    at = moment(field.format, cell)
    if not isinstance(at, (int, datetime.datetime)):
        return [], at == "bad"
    if isinstance(at, int):
        # 400 Gregorian years, after which weekdays and dates repeat, keep the library's calendar in its range.
        at = datetime.datetime(1970, 1, 1, tzinfo=UTC) + datetime.timedelta(seconds=at % (146097 * 86400))
    ids = {
        "hour": at.hour,
        "weekday": at.weekday(),
        "weekend": int(at.weekday() >= 5),
        "day": at.day - 1,
        "month": at.month - 1,
    }
    return [(ids[field.part], 1.0)], False


def _categorical(
    schema: kinds.ResolvedSchema, field: kinds.CategoricalField, cell: bytes
) -> tuple[list[tuple[int, float]], bool]:
    pieces = [cell]
    if field.separator is not None:
        pieces = [given(schema, field, piece) for piece in cell.split(field.separator.encode())]
        if isinstance(schema.spec.space_of(field).space, kinds.DeclaredIds):
            pieces = [piece.strip(WHITE) for piece in pieces]
        pieces = [piece for piece in pieces if piece]
        pieces = pieces[: field.max_values] if field.keep == "first" else pieces[-field.max_values :]
    ids = [local_id(schema, field, piece) for piece in pieces]
    if "bad" in ids:
        return [], True
    found = [i for i in ids if isinstance(i, int)]
    weight = np.float32(1) / np.float32(len(found)) if found and field.value == "mean" else 1.0
    return [(i, float(weight)) for i in found], False


def _libfm(fields: list[kinds.LibfmField], cell: bytes) -> tuple[list[Found], list[bool]]:
    found: list[Found] = [[] for _ in fields]
    bad = [False] * len(fields)
    stray = False
    for entry in cell.split():
        parts = entry.split(b":")
        if len(parts) != 2 or not re.fullmatch(rb"[0-9]{1,18}", parts[0]) or not NUMBER.fullmatch(parts[1]):
            stray = True
            continue
        owner = [i for i, f in enumerate(fields) if f.ids[0] <= int(parts[0]) < f.ids[1]]
        if not owner:
            stray = True
            continue
        with np.errstate(over="ignore"):
            value = float(np.float32(float(parts[1])))
        if not math.isfinite(value):
            bad[owner[0]] = True
        elif float(parts[1]) != 0:
            found[owner[0]].append((int(parts[0]) - fields[owner[0]].ids[0], value))
    for i, field in enumerate(fields):
        bad[i] |= len(found[i]) > field.max_values
        if bad[i]:
            found[i] = []
    bad[0] |= stray
    return found, bad


def transform_row(schema: kinds.ResolvedSchema, row: dict[str, bytes]) -> tuple[list[int], list[float], list[bool]]:
    """ids [F], values [F] (float32 precision), bad [fields]."""
    ids: list[int] = []
    vals: list[float] = []
    bads: list[bool] = []
    libfm = [f for f in schema.spec.fields if isinstance(f, kinds.LibfmField)]
    libfm_found, libfm_bad = _libfm(libfm, row["features"]) if libfm else ([], [])
    for index, field in enumerate(schema.spec.fields):
        if isinstance(field, kinds.LibfmField):
            found, bad = libfm_found[index], libfm_bad[index]
        elif isinstance(field, kinds.NumericField):
            found, bad = _numeric(schema, field, given(schema, field, row[kinds.column_of(field)]))
        elif isinstance(field, kinds.TimeField):
            found, bad = _time(field, given(schema, field, row[kinds.column_of(field)]))
        elif isinstance(field, kinds.CrossField):
            parts = [given(schema, field, row[name]) for name in field.columns]
            local = local_id(schema, field, b"\x1f".join(parts)) if all(parts) else None
            found, bad = ([(local, 1.0)] if isinstance(local, int) else []), False
        else:
            found, bad = _categorical(schema, field, given(schema, field, row[kinds.column_of(field)]))
        name = schema.spec.space_of(field).name
        slots = [(schema.global_id(name, local), value) for local, value in found]
        if not slots and field.missing == "own":
            slots = [(schema.global_id(kinds.missing_space(field.name), 0), 1.0)]
        slots += [(0, 0.0)] * (kinds.slots_of(field) - len(slots))
        ids += [i for i, _ in slots]
        vals += [v for _, v in slots]
        bads.append(bad)
    return ids, vals, bads
