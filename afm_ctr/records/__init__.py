"""Records on disk: the tf.Example contract, shards, the manifest of a prepared data set, and reading it in order."""

from __future__ import annotations

from afm_ctr.records.example import framed_examples, serialize_examples
from afm_ctr.records.manifest import Manifest, ShardInfo
from afm_ctr.records.order import EpochOrder
from afm_ctr.records.parsing import parse_examples
from afm_ctr.records.reader import Reader
from afm_ctr.records.writer import BLOCK_RECORDS, ShardStats, ShardWriter

__all__ = [
    "BLOCK_RECORDS",
    "EpochOrder",
    "Manifest",
    "Reader",
    "ShardInfo",
    "ShardStats",
    "ShardWriter",
    "framed_examples",
    "parse_examples",
    "serialize_examples",
]
