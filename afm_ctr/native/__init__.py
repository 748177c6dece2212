"""TensorFlow ops in C++: attentional pooling and the optimizers' steps, on CPUs and on NVIDIA GPUs; on CPUs also the
rest of a table's step and reading records. And a library without TensorFlow, which prepares rows.

``scripts/build_native.py`` builds both at set-up. They are not needed to import this package: :func:`why_not` returns
why the pooling op cannot be used.
"""

from __future__ import annotations

from afm_ctr.native.library import key, library_path, sources, tensorflow_version
from afm_ctr.native.op import (
    BUILD,
    asked_for,
    describe,
    fused_pooling,
    instruction_sets,
    load,
    normalise,
    uses_gpu,
    why_not,
)
from afm_ctr.native.plain import (
    RowEncoder,
    RowField,
    TextIndex,
    bad_times,
    cut_lines,
    fingerprints,
    frame_examples,
    parse_numbers,
    prepares,
    scan_json,
)
from afm_ctr.native.records import paths_tensor, read_records, reads_records
from afm_ctr.native.table import (
    add_rows,
    expand_rows,
    fm,
    fm_gradient,
    merge_ids,
    read_rows,
    step_on_gpu,
    step_rows,
    steps_on_gpu,
    steps_tables,
)

__all__ = [
    "BUILD",
    "RowEncoder",
    "RowField",
    "TextIndex",
    "add_rows",
    "asked_for",
    "bad_times",
    "cut_lines",
    "describe",
    "expand_rows",
    "fingerprints",
    "fm",
    "fm_gradient",
    "frame_examples",
    "fused_pooling",
    "instruction_sets",
    "key",
    "library_path",
    "load",
    "merge_ids",
    "normalise",
    "parse_numbers",
    "paths_tensor",
    "prepares",
    "read_records",
    "read_rows",
    "reads_records",
    "scan_json",
    "sources",
    "step_on_gpu",
    "step_rows",
    "steps_on_gpu",
    "steps_tables",
    "tensorflow_version",
    "uses_gpu",
    "why_not",
]
