"""Samples text logs with bounded reading: lines spread evenly over the part of each file that is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from afm_ctr.errors import UserError
from afm_ctr.io.paths import expand, is_remote, local_path
from afm_ctr.rawlog import open_log
from afm_ctr.rawlog.codecs import FIRST_BYTES, PARQUET_MAGIC, codec_of
from afm_ctr.rawlog.lines import BYTE_ORDER_MARK

ROWS = 30_000  # of all files together
MOST_FILES = 20
READ_BYTES = 256 << 20  # decompressed, of all files together
_STRETCHES = 16  # ranges to read from a plain file larger than its share


@dataclass
class FileSample:
    """Some lines of a file."""

    path: str
    first: bytes  # its first line, without a byte order mark
    lines: list[bytes]  # the sampled lines, in order, without ``first``
    # number of lines after the first: counted if the whole file was read, otherwise estimated for a plain file and
    # ``None`` for a compressed one
    total: int | None


def matching(patterns: Sequence[str]) -> list[str]:
    """The local files that prepare would read for paths and globs, sorted.

    Raises:
        UserError: a glob matches no file, or names a folder or a remote file.
    """
    found: dict[str, str] = {}  # by real path: a file may be given by two paths
    for pattern in patterns:
        if is_remote(local_path(pattern)):
            raise UserError(f"{pattern}: infer-schema looks at local files; copy a few of the logs here")
        paths = expand(local_path(pattern))
        if len(paths) == 1 and os.path.isdir(paths[0]):
            raise UserError(f"{pattern} is a folder; name its files: {os.path.join(pattern, '*')}")
        paths = [path for path in paths if os.path.isfile(path)]
        if not paths:
            raise UserError(f"{pattern}: no such file")
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    paths = sorted(path for path in found.values() if os.path.getsize(path))
    if not paths:
        raise UserError(f"{', '.join(patterns)}: the files are empty")
    return paths


def chosen(paths: Sequence[str]) -> list[str]:
    """At most ``MOST_FILES`` of the files, evenly spaced, including the first."""
    count = min(len(paths), MOST_FILES)
    return [paths[i * len(paths) // count] for i in range(count)]


def is_parquet(path: str) -> bool:
    """Whether a file is Parquet, by its first bytes."""
    return _first_bytes(path).startswith(PARQUET_MAGIC)


def sample_file(path: str, rows: int, read_bytes: int) -> FileSample:
    """Sample up to about ``rows`` lines of a file, reading at most ``read_bytes``.

    Raises:
        UserError: the file cannot be read, or is not text.
    """
    size = os.path.getsize(path)
    plain = codec_of(path, _first_bytes(path)) == "plain"
    if plain and size > read_bytes:
        return _stretches(path, size, rows, read_bytes)
    kept: list[bytes] = []
    stride, number, taken_bytes, ended = 1, 0, 0, False
    with open_log(path) as stream:
        first = next(iter(stream.take(1)), b"").removeprefix(BYTE_ORDER_MARK)
        if not first and stream.broken is not None:
            raise UserError(f"{path}: no complete line: {stream.broken.detail}; repair the file or leave it out")
        while taken_bytes < read_bytes:
            lines = stream.take(1024)
            if not lines:
                ended = True
                break
            kept += lines[-number % stride :: stride]
            number += len(lines)
            taken_bytes += sum(map(len, lines)) + len(lines)
            while len(kept) > 2 * rows:
                kept, stride = kept[::2], 2 * stride
    return FileSample(path, first, _spread(kept, rows), number if ended else None)


def _stretches(path: str, size: int, rows: int, read_bytes: int) -> FileSample:
    """Sample a large plain file from evenly spaced ranges."""
    length = read_bytes // _STRETCHES
    kept: list[bytes] = []
    seen = seen_bytes = 0
    with open(path, "rb") as stream:
        first = stream.readline(length).rstrip(b"\r\n").removeprefix(BYTE_ORDER_MARK)
        for number in range(_STRETCHES):
            stream.seek(number * size // _STRETCHES)
            # The first and the last piece may be partial lines.
            lines = [line.removesuffix(b"\r") for line in stream.read(length).split(b"\n")[1:-1]]
            seen, seen_bytes = seen + len(lines), seen_bytes + sum(map(len, lines)) + len(lines)
            kept += _spread(lines, -(-rows // _STRETCHES))
    return FileSample(path, first, kept, round(size * seen / max(seen_bytes, 1)))


def _spread(lines: list[bytes], count: int) -> list[bytes]:
    if len(lines) <= count:
        return lines
    return [lines[i * len(lines) // count] for i in range(count)]


def _first_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(FIRST_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error
