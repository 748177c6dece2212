"""Rejects: counted exactly, kept up to a limit per reason, in the order of the chunks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from afm_ctr.rawlog import Reject
from beam_jobs import files


def reject_file(chunk: int) -> str:
    """Name of the file with a chunk's rejects."""
    return f"part-{chunk:05d}.jsonl"


class ChunkRejects:
    """The rejects of one chunk: the count of each reason, and its first lines.

    Args:
        most: maximum number of lines to keep per reason; the limit of the whole job.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.counts: Counter[str] = Counter()
        self._kept: list[Reject] = []

    def add(self, batch: Iterable[Reject]) -> None:
        """Add the rejects of the chunk's next batch, in any order."""
        for reject in sorted(batch, key=lambda reject: reject.line):
            if self.room(reject.reason) > 0:
                self._kept.append(reject)
            self.counts[reject.reason] += 1

    def room(self, reason: str) -> int:
        """How many more rejects of a reason would be kept."""
        return self._most - self.counts[reason]

    def lines(self) -> bytes:
        """The kept rejects, one per line."""
        return b"".join(reject.to_line() for reject in self._kept)


@dataclass(frozen=True)
class Share:
    """The lines of a chunk's file of rejects that the data set keeps."""

    name: str  # of the file, see :func:`reject_file`
    take: Mapping[str, int]  # number of lines by reason, from the first on
    whole: bool  # whether these are all lines of the file


def shares(counts: Sequence[tuple[str, Mapping[str, int]]], most: int) -> tuple[list[Share], dict[str, int]]:
    """Divide ``most`` lines of each reason among the chunks, in their order.

    Args:
        counts: the name of every chunk's file, in the order of the chunks, with its exact counts.

    Returns:
        The shares that are not empty, and the total number of lines kept of each reason.
    """
    kept: Counter[str] = Counter()
    found = []
    for name, reasons in counts:
        take = {reason: min(count, most - kept[reason]) for reason, count in reasons.items()}
        kept.update(take)
        if any(take.values()):
            found.append(Share(name, take, all(take[reason] == min(reasons[reason], most) for reason in reasons)))
    return found, dict(sorted(kept.items()))


def taken(folder: str, share: Share) -> bytes:
    """Read the lines of a share from its file in ``folder``."""
    content = files.read(files.join(folder, share.name))
    return content if share.whole else b"".join(_first(content.splitlines(keepends=True), share.take))


def _first(lines: Iterable[bytes], take: Mapping[str, int]) -> Iterator[bytes]:
    seen: Counter[str] = Counter()
    for line in lines:
        reason = json.loads(line)["reason"]
        if seen[reason] < take.get(reason, 0):
            seen[reason] += 1
            yield line
