"""Compressed streams and lines of any length: every readable byte, nothing held that need not be."""

from __future__ import annotations

import bz2
import gzip
import io
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_ctr.errors import UserError
from afm_ctr.rawlog import LineStream, LongLine, open_log
from afm_ctr.rawlog.codecs import BLOCK, FIRST_BYTES, Codec, codec_of, read_blocks, unpack
from afm_ctr.rawlog.lines import KEPT_BYTES, range_blocks, without_mark


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


PACK: dict[Codec, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bz2": bz2.compress, "zstd": zstd}
CODECS = pytest.mark.parametrize("codec", list(PACK))


def lines_of(codec: Codec, packed: bytes, size: int = BLOCK) -> LineStream:
    return LineStream(unpack(codec, read_blocks(io.BytesIO(packed), size)))


def some_lines(count: int) -> list[bytes]:
    draw = random.Random(5)
    return [b"%d %x" % (i, draw.getrandbits(200)) for i in range(count)]


@CODECS
@pytest.mark.parametrize("size", [1, 700, BLOCK])
def test_members_and_padding_are_one_stream(codec: Codec, size: int) -> None:
    pack = PACK[codec]
    stream = lines_of(codec, pack(b"a\nb\nc") + pack(b"") + pack(b"d\n") + b"\0" * 50, size)
    assert stream.take(9) == [b"a", b"b", b"cd"]
    assert stream.broken is None


@CODECS
@pytest.mark.parametrize("size", [100, BLOCK])
def test_what_is_readable_of_a_broken_stream_is_kept(codec: Codec, size: int) -> None:
    lines = some_lines(20_000 if codec != "gzip" else 4000)
    half = len(lines) // 2
    # Two members, so that even the large blocks of bzip2 and zstd leave something to read.
    first, second = (PACK[codec](b"".join(line + b"\n" for line in part)) for part in (lines[:half], lines[half:]))
    cut = lines_of(codec, first + second[:-9], size)
    found = cut.take(len(lines) + 1)
    assert half <= len(found) <= len(lines) and found == lines[: len(found)]
    assert cut.broken is not None and cut.broken.detail == f"the {codec} stream ends early"
    junk = lines_of(codec, first + b"not a member at all", size)
    assert junk.take(len(lines)) == lines[:half]
    assert junk.broken is not None and junk.broken.detail.startswith(f"damaged {codec} stream: ")
    middle = len(second) // 2
    wrong = lines_of(codec, first + second[:middle] + bytes(100) + second[middle + 100 :], size)
    assert wrong.take(10**6)[:half] == lines[:half]
    assert wrong.broken is not None


@CODECS
def test_a_broken_stream_reads_the_same_whatever_the_blocks(codec: Codec) -> None:
    packed = bytearray(PACK[codec](b"\n".join(some_lines(9000))) * 2)
    packed[len(packed) * 3 // 4] ^= 255
    for damaged in (bytes(packed), bytes(packed[: len(packed) * 2 // 3])):
        results = []
        for size in (333, 4096, BLOCK):
            stream = lines_of(codec, damaged, size)
            results.append((stream.take(10**6), stream.broken))
        assert results[0] == results[1] == results[2] and results[0][1] is not None


def test_a_checksum_that_does_not_fit_is_damage() -> None:
    packed = bytearray(zstd(b"a\n" * 1000))
    packed[-1] ^= 1
    assert lines_of("zstd", bytes(packed)).skip(9999) == 0  # its only block was in the last piece
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"info"
    assert codec_of("x", skippable) == "zstd"
    assert lines_of("zstd", skippable + zstd(b"a\nb\n")).take(9) == [b"a", b"b"]


def test_the_first_bytes_say_what_a_file_is() -> None:
    for codec, pack in PACK.items():
        assert codec_of("any.log", pack(b"x")[:FIRST_BYTES]) == codec == codec_of("x", pack(b"")[:FIRST_BYTES])
    assert codec_of("a.csv", b"BZhang,1,a") == codec_of("a.csv", b"ORCA,1") == codec_of("a.gz", b"") == "plain"
    for path, start, message in (
        ("b.gz", b"click,site", r"b.gz: the name says gzip, the content does not; rename or repair the file"),
        ("b.csv.bz2", b"BZh", "the name says bz2"),
        ("b.zst", b"click", "the name says zstd"),
        ("b.log", b"PAR1\x15\x04", "b.log is a Parquet file; set `format: {kind: parquet}` in the schema"),
        ("b.xz", b"\xfd7zXZ\0\0\4", "b.xz is an xz file; text may be plain or compressed by gzip, bzip2 or zstd"),
        (
            "b.orc",
            b"ORC\x08",
            "b.orc is an ORC file; of table formats only Parquet is read; write it as Parquet",
        ),
        ("b.feather", b"ARROW1\0\0", "b.feather is an Arrow file; .* write it as Parquet"),
        ("b", b"SQLite format 3\0", "b is an SQLite database"),
        ("b.csv", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer .*; git lfs pull"),
        ("b.csv", b"<!DOCTYPE html><p>404", "is an HTML page; download the log itself"),
        ("b.csv", "click,site\n1,é".encode("utf-16"), "is UTF-16 text; write it as UTF-8: iconv -f UTF-16 -t UTF-8"),
        ("b.csv", b"\xfe\xff" + "click,site".encode("utf-16-be"), "is UTF-16 text"),
        ("b.csv", "click,site\n1".encode("utf-32"), "is UTF-32 text"),
        ("b.csv", "click,site\n1".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8 FILE"),
        ("b.csv", "click,site\n1".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8 FILE"),
    ):
        with pytest.raises(UserError, match=message):
            codec_of(path, start)


def tar(kind: int) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=kind) as archive:
        member = tarfile.TarInfo("dac/" + "long" * 30 + "/train.txt")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"1\ta\n"))
    return target.getvalue()


def v7() -> bytes:
    """As the first tar wrote them: without a magic number."""
    header = bytearray(512)
    header[:9], header[100:108], header[124:136] = b"train.txt", b"0000644\0", b"00000000004\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"1\ta\n".ljust(512, b"\0")


ARCHIVES = {
    "a tar archive": [tar(tarfile.GNU_FORMAT), tar(tarfile.PAX_FORMAT), tar(tarfile.USTAR_FORMAT), v7()],
    "a zip archive": [b"PK\x03\x04" + bytes(100)],
    "an xz file": [b"\xfd7zXZ\0" + bytes(100)],
    "a 7-Zip archive": [b"7z\xbc\xaf\x27\x1c" + bytes(100)],
    "UTF-16 text": ["click,site\n1,a".encode("utf-16")],
}


@pytest.mark.parametrize(("what", "content"), [(what, one) for what, many in ARCHIVES.items() for one in many])
@pytest.mark.parametrize("codec", ["plain", *PACK])
def test_an_archive_is_named_plain_or_packed(tmp_path: Path, codec: Codec, what: str, content: bytes) -> None:
    path = tmp_path / f"dac.{codec}"
    path.write_bytes(content if codec == "plain" else PACK[codec](content))
    packed = "" if codec == "plain" else f" compressed by {codec}"
    with pytest.raises(UserError, match=f"{path} is {what}{packed}; ") as raised, open_log(str(path)) as lines:
        lines.take(1)
    assert "\n" not in str(raised.value)


@CODECS
def test_a_file_packed_twice_is_named(tmp_path: Path, codec: Codec) -> None:
    path = tmp_path / "a.log"
    for second in ("gzip", "bz2", "zstd"):
        path.write_bytes(PACK[codec](PACK[second](b"1,a\n")))
        message = f"compressed twice, by {codec} and by {second} inside"
        with pytest.raises(UserError, match=message), open_log(str(path)) as lines:
            lines.take(1)


def test_text_is_no_tar_archive() -> None:
    """Whatever stands where a header has its sum."""
    for line in (b"1,a,b,0000644\n" * 40, b" " * 600, b"0" * 600, v7()[:511], b"x" + v7(), b"a\0b\0", bytes(600)):
        assert codec_of("a.csv", line[:FIRST_BYTES]) == "plain"


@CODECS
def test_a_broken_stream_shorter_than_a_header_keeps_its_rows(tmp_path: Path, codec: Codec) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(PACK[codec](b"1,a\n" * 3)[:-3] if codec == "gzip" else PACK[codec](b"1,a\n" * 3) + b"rest")
    with open_log(str(path)) as lines:
        assert lines.take(9)[:3] == [b"1,a"] * 3
        assert lines.broken is not None


@CODECS
def test_a_local_file_is_read_whatever_packs_it(tmp_path: Path, codec: Codec) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(PACK[codec](b"\xef\xbb\xbfx\r\n\ny"))
    with open_log(str(path)) as lines:
        assert lines.take(9) == [b"x", b"", b"y"]
    with pytest.raises(UserError, match="cannot read it: No such file"), open_log(str(tmp_path / "no")):
        pass


@given(st.binary(max_size=6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_byte_order_mark_goes_and_nothing_else(data: bytes, size: int) -> None:
    marked = b"\xef\xbb\xbf" + data
    assert b"".join(without_mark(read_blocks(io.BytesIO(marked), size))) == data
    assert b"".join(without_mark(read_blocks(io.BytesIO(data), size))) == data.removeprefix(b"\xef\xbb\xbf")


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([b"\n", b"\r\n"])), max_size=12),
    st.booleans(),
    st.integers(1, 12),
    st.integers(1, 50),
    st.integers(1, 30),
    st.integers(0, 12),
)
@settings(max_examples=150, deadline=None)
def test_long_lines_are_found_wherever_blocks_and_ranges_end(
    shapes: list[tuple[int, bytes]], ended: bool, limit: int, size: int, step: int, skip: int
) -> None:
    lines = [bytes([97 + i]) * length for i, (length, _) in enumerate(shapes)]
    data = b"".join(line + end for line, (_, end) in zip(lines, shapes, strict=True))
    if not ended and shapes:
        data = data.removesuffix(shapes[-1][1])
        lines = lines if lines[-1] else lines[:-1]  # nothing behind the last line end is no line
    found: list[bytes] = []
    for start in range(0, len(data), step):
        blocks = range_blocks(io.BytesIO(data), start, min(start + step, len(data)), size)
        found += LineStream(blocks, limit).take(100)
    assert [len(line) > limit for line in lines] == [isinstance(line, LongLine) for line in found]
    assert [getattr(line, "length", len(line)) for line in found] == [len(line) for line in lines]
    assert found == lines  # a kilobyte is kept
    stream = LineStream(read_blocks(io.BytesIO(data), size), limit)
    assert stream.skip(skip) == min(skip, len(lines))
    assert stream.take(100) == lines[skip:]


class Endless:
    """A file of one line that no memory holds, with a count of what has been read of it."""

    def __init__(self, size: int) -> None:
        self.size, self.at, self.given = size, 0, 0

    def seek(self, at: int) -> None:
        self.at = at

    def read(self, count: int) -> bytes:
        block = b"x" * min(count, self.size - self.at)
        self.at += len(block)
        self.given += len(block)
        return block


def test_an_endless_line_is_passed_over_in_the_memory_of_a_block() -> None:
    import tracemalloc

    def blocks() -> Iterator[bytes]:
        yield b"first\n"
        for _ in range(300):
            yield block
        yield b"x\r\nlast"

    block = b"x" * BLOCK
    tracemalloc.start()
    for stream in (LineStream(blocks()), LineStream(unpack("zstd", [zstd(b"".join(blocks()))]))):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        first, long, last = stream.take(9)
        assert (first, last) == (b"first", b"last")
        assert isinstance(long, LongLine) and long == b"x" * KEPT_BYTES and long.length == 300 * BLOCK + 1
        assert tracemalloc.get_traced_memory()[1] - before < 30 * BLOCK
    tracemalloc.stop()


def test_a_range_inside_an_endless_line_is_soon_done() -> None:
    file = Endless(1 << 34)
    assert list(range_blocks(file, 1 << 20, 2 << 20, 1 << 16)) == []  # type: ignore[arg-type]
    assert file.given <= 2 << 20
