"""TensorFlow ops in C++: attentional pooling for training on CPUs and on NVIDIA GPUs, and reading records.

The library is built at set-up by ``scripts/build_native.py``, and nothing here needs it to be imported:
:func:`why_not` says what keeps the pooling from being used, :func:`available` whether nothing does.
"""

from __future__ import annotations

from afm_ctr.native.library import key, library_path, sources, tensorflow_version
from afm_ctr.native.op import BUILD, available, describe, fused_pooling, instruction_sets, load, uses_gpu, why_not
from afm_ctr.native.records import read_records, reads_records

__all__ = [
    "BUILD",
    "available",
    "describe",
    "fused_pooling",
    "instruction_sets",
    "key",
    "library_path",
    "load",
    "read_records",
    "reads_records",
    "sources",
    "tensorflow_version",
    "uses_gpu",
    "why_not",
]
