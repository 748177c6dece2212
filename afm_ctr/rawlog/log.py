"""A whole local log file as parsed rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from afm_ctr.rawlog.layout import has_header
from afm_ctr.rawlog.lines import BYTE_ORDER_MARK, BrokenEnd, open_log
from afm_ctr.rawlog.parser import LineParser, ParsedLines
from afm_ctr.rawlog.rejects import Reject
from afm_ctr.schema import FeatureSchema


def parse_log(path: str, spec: FeatureSchema, labelled: bool = True, batch_rows: int = 4096) -> Iterator[ParsedLines]:
    """All rows of a local log file, in order, in batches of at most ``batch_rows`` lines.

    The broken end of a gzip file comes as a last batch of one ``truncated_input`` reject.

    Raises:
        UserError: the file cannot be read, or a column is missing.
    """
    with open_log(path) as stream:
        number, header = 1, None
        if has_header(spec):
            header = next(iter(stream.take(1)), None)
            number = 2
        parser = LineParser(spec, header, labelled, source=str(path))
        while lines := stream.take(batch_rows):
            if number == 1:
                lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
            yield parser.parse(lines, str(path), number)
            number += len(lines)
        if stream.broken:
            rows = parser.parse([], str(path), number)
            rows.rejects.append(truncated(str(path), number, stream.broken))
            yield rows


def truncated(source: str, line: int, end: BrokenEnd) -> Reject:
    """The one reject of a gzip stream's broken end."""
    key = b"%s#%d" % (PurePosixPath(source).name.encode(), line)
    return Reject(key, source, line, "truncated_input", end.detail, end.raw)
