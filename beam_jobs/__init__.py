"""The Apache Beam job that turns raw logs into sharded TFRecords."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beam_jobs.job import PrepareSummary, prepare
    from beam_jobs.options import PrepareOptions
    from beam_jobs.transforms import Prepare, ReadRawLogs, WriteRecords

__all__ = ["Prepare", "PrepareOptions", "PrepareSummary", "ReadRawLogs", "WriteRecords", "prepare"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from beam_jobs import job, transforms

        return getattr(job if hasattr(job, name) else transforms, name)
    raise AttributeError(f"module 'beam_jobs' has no attribute {name!r}; it has: {', '.join(__all__)}")
