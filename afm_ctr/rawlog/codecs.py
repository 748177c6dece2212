"""Compressed files: gzip, bzip2 and zstd, detected by their first bytes; recovers what is readable of broken ones."""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Literal

from afm_ctr.errors import UserError

Codec = Literal["plain", "gzip", "bz2", "zstd"]

BLOCK = 1 << 20  # bytes to read or decompress at a time
FIRST_BYTES = 512  # of a file, to detect its format; the size of a tar header
# Bytes passed to bzip2 and zstd at a time. A failing call loses its output, and zstd decompresses all its input at
# once, up to 128 kB for every four bytes: small pieces bound both.
_PIECE = 256

_SUFFIXES: dict[str, Codec] = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd"}
_TEXT = "text may be plain or compressed by gzip, bzip2 or zstd"
_TABLE = "of table formats only Parquet is read; write it as Parquet"
_UNREADABLE = {
    b"\xfd7zXZ\0": "an xz file",
    b"PK\x03\x04": "a zip archive",
    b"\x04\x22\x4d\x18": "an lz4 file",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\xff\x06\0\0sNaPpY": "a Snappy file",
    b"\x1f\x9d": "a file of compress",
    b"\x5d\0\0": "an LZMA file",
}
_TABLES = {
    b"Obj\x01": "an Avro file",
    b"ORC": "an ORC file",
    b"ARROW1\0\0": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3\0": "an SQLite database",
}
_FETCHED = {
    b"version https://git-lfs.github.com/": ("a Git LFS pointer instead of the file", "git lfs pull"),
    b"<!DOCTYPE html": ("an HTML page", "download the log itself"),
    b"<html": ("an HTML page", "download the log itself"),
}
_WIDE = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_SKIPPABLE = re.compile(
    rb"[\x50-\x5f]\x2a\x4d\x18"
)  # a zstd frame without content, with which parallel compressors begin
PARQUET_MAGIC = b"PAR1"


class BrokenStream(Exception):
    """A compressed stream that cannot be read further; everything readable has been yielded before."""


def codec_of(path: str, first_bytes: bytes) -> Codec:
    """Detect the compression of a text file by its first :data:`FIRST_BYTES`.

    Raises:
        UserError: its name says that it is compressed but its content is not; or it is not a text file.
    """
    if (codec := _packed_by(first_bytes)) != "plain":
        return codec
    if first_bytes.startswith(PARQUET_MAGIC):
        raise UserError(f"{path} is a Parquet file; set `format: {{kind: parquet}}` in the schema")
    if found := _no_text(path, first_bytes):
        raise UserError(f"{path} is {found[0]}; {found[1]}")
    for suffix, named in _SUFFIXES.items():
        if path.endswith(suffix) and first_bytes:
            raise UserError(f"{path}: the name says {named}, the content does not; rename or repair the file")
    return "plain"


def _packed_by(first_bytes: bytes) -> Codec:
    if first_bytes.startswith(b"\x1f\x8b"):
        return "gzip"
    # A text may begin with "BZh", but not with a block's magic number after it.
    if first_bytes[:3] == b"BZh" and first_bytes[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bz2"
    return "zstd" if first_bytes.startswith(b"\x28\xb5\x2f\xfd") or _SKIPPABLE.match(first_bytes) else "plain"


def _no_text(path: str, first_bytes: bytes) -> tuple[str, str] | None:
    """The kind of a file that is not UTF-8 text, and what to do with it; None for any other file."""
    for kinds, how in ((_UNREADABLE, _TEXT), (_TABLES, _TABLE)):
        for magic, what in kinds.items():
            if first_bytes.startswith(magic) and (magic != b"ORC" or path.endswith(".orc")):
                return what, how
    for magic, found in _FETCHED.items():
        if first_bytes.startswith(magic):
            return found
    if (wide := _wide(first_bytes)) is not None:
        return f"{wide} text", f"write it as UTF-8: iconv -f {wide} -t UTF-8 FILE"
    return ("a tar archive", _TEXT) if _is_tar(first_bytes) else None


def _wide(start: bytes) -> str | None:
    """UTF-16 or UTF-32, detected by the byte order mark or by the zero bytes of ASCII characters; None: neither."""
    for mark, name in _WIDE.items():
        if start.startswith(mark):
            return name
    pairs = start[: len(start) // 2 * 2]
    for first, name in ((0, "UTF-16BE"), (1, "UTF-16LE")):
        if len(pairs) >= 16 and not any(pairs[first::2]) and all(pairs[1 - first :: 2]):
            return name
    return None


def _is_tar(block: bytes) -> bool:
    """Whether 512 bytes are the header of a tar archive of any variant, by its checksum."""
    if len(block) < 512 or (written := re.fullmatch(rb"[ \0]*([0-7]{1,7})[ \0]*", block[148:156])) is None:
        return False
    return int(written[1], 8) == sum(block[:148]) + 8 * ord(" ") + sum(block[156:512])


def open_text(path: str, stream: BinaryIO, size: int = BLOCK) -> tuple[Codec, Iterator[bytes]]:
    """The compression of a text file, and its decompressed content in blocks.

    Args:
        stream: seekable, at the beginning of the file.

    Raises:
        UserError: as :func:`codec_of`; and, with the first block, if the content is an archive or compressed again.
    """
    codec = codec_of(path, stream.read(FIRST_BYTES))
    stream.seek(0)
    blocks = unpack(codec, read_blocks(stream, size))
    return codec, blocks if codec == "plain" else _text_inside(path, codec, blocks)


def _text_inside(path: str, codec: Codec, blocks: Iterator[bytes]) -> Iterator[bytes]:
    start, broken = b"", None
    try:
        while len(start) < FIRST_BYTES and (more := next(blocks, None)) is not None:
            start += more
    except BrokenStream as error:
        broken = error
    inside, how = _no_text("", start) or (None, "")
    if inside is None and start.startswith(PARQUET_MAGIC):
        inside, how = "a Parquet file", _TEXT
    if inside is not None:
        how = f"unpack it and name the files in it: {_TEXT}" if how is _TEXT else f"unpack it, then {how}"
        raise UserError(f"{path} is {inside} compressed by {codec}; {how}")
    if (second := _packed_by(start)) != "plain":
        raise UserError(f"{path} is compressed twice, by {codec} and by {second} inside; unpack it once: {_TEXT}")
    yield start
    if broken is not None:
        raise broken
    start = b""  # free the memory
    yield from blocks


def read_blocks(stream: BinaryIO, size: int = BLOCK) -> Iterator[bytes]:
    """The rest of a stream in blocks."""
    while block := stream.read(size):
        yield block


def unpack(codec: Codec, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress a file of one or more members; the division into blocks does not affect the result.

    Of a truncated or damaged gzip stream every readable byte is yielded; of a bzip2 or zstd stream every compressed
    block that ends before the last 256 readable bytes of the file.

    Raises:
        BrokenStream: after the last readable byte of a stream that is damaged or ends early.
        UserError: the file is zstd, and the package ``zstandard`` is not installed.
    """
    if codec == "gzip":
        return _gunzip(blocks)
    if codec == "bz2":
        return _unpack(codec, _bunzip, bz2.BZ2Decompressor, (OSError, EOFError), blocks)
    if codec == "zstd":
        try:
            import zstandard
        except ImportError as error:
            raise UserError(
                "a zstd file needs the package zstandard, which is not installed: pip install zstandard"
            ) from error
        start = zstandard.ZstdDecompressor().decompressobj
        return _unpack(codec, lambda member, data: [member.decompress(data)], start, zstandard.ZstdError, blocks)
    return iter(blocks)


def _gunzip(blocks: Iterable[bytes]) -> Iterator[bytes]:
    member = zlib.decompressobj(31)
    fresh = True
    for block in blocks:
        data = block
        while data:
            if member.eof or fresh:
                # Members may be padded with zeros; no member begins with one.
                data = data.lstrip(b"\0") if member.eof else data
                if not data:
                    break
                member, fresh = zlib.decompressobj(31), False
            before = member.copy()
            try:
                unpacked = member.decompress(data, 4 * BLOCK)
            except zlib.error as error:
                # A failing call of zlib returns nothing: repeat it byte by byte.
                yield from _salvage(before, data)
                raise BrokenStream(f"damaged gzip stream: {error}") from error
            yield unpacked
            data = member.unused_data if member.eof else member.unconsumed_tail
    if not (fresh or member.eof):
        yield member.flush()
        raise BrokenStream("the gzip stream ends early")


def _salvage(member: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    for i in range(len(data)):
        try:
            unpacked = member.decompress(data[i : i + 1])
        except zlib.error:
            return
        if unpacked:
            yield unpacked


def _unpack(
    codec: Codec,
    decompress: Callable[[Any, bytes], Iterable[bytes]],
    start: Callable[[], Any],
    errors: type[Exception] | tuple[type[Exception], ...],
    blocks: Iterable[bytes],
) -> Iterator[bytes]:
    """Decompress members with decompressors that cannot be copied."""
    member: Any = None
    for piece in _pieces(blocks):
        data = piece
        while data:
            if member is None:
                member = start()
            try:
                for unpacked in decompress(member, data):
                    if unpacked:
                        yield unpacked
            except errors as error:
                raise BrokenStream(f"damaged {codec} stream: {error}") from error
            data = b""
            if member.eof:
                data, member = member.unused_data.lstrip(b"\0"), None
    if member is not None:
        raise BrokenStream(f"the {codec} stream ends early")


def _bunzip(member: bz2.BZ2Decompressor, data: bytes) -> Iterator[bytes]:
    yield member.decompress(data, BLOCK)
    while not (member.eof or member.needs_input):
        yield member.decompress(b"", BLOCK)


def _pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of ``_PIECE`` bytes."""
    rest = b""
    for block in blocks:
        data = rest + block if rest else block
        whole = len(data) - len(data) % _PIECE
        for at in range(0, whole, _PIECE):
            yield data[at : at + _PIECE]
        rest = data[whole:]
    if rest:
        yield rest
