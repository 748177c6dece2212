"""Encodes the sample by its schema, to try penalties and pairs on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from afm_ctr.analysis import Analysis, Analyzer, spec_needs_analysis
from afm_ctr.penalty import TrialRows, rows_to_try
from afm_ctr.process_setup import load_tensorflow_without_keras
from afm_ctr.schema import FeatureSchema, resolve


def encoded(
    spec: FeatureSchema, cells: Mapping[str, Sequence[bytes]], positive: np.ndarray, share: float
) -> TrialRows:
    """Encode rows spread evenly over the first ``share`` of the sample; the schema learns from these rows only.

    Args:
        cells: cells of every row, by raw column.
        positive: bool, one per row.
    """
    load_tensorflow_without_keras()
    from afm_ctr.features import FeatureTransform

    known = round(share * len(positive))
    rows = min(known, rows_to_try(sum(field.max_values for field in spec.fields)))
    places = np.arange(rows) * known // max(rows, 1)
    columns = {name: np.array([cells[name][i] for i in places.tolist()], object) for name in spec.raw_columns}
    found = Analysis.empty()
    if spec_needs_analysis(spec):
        analyzer = Analyzer(spec, chunk=0)
        analyzer.add(columns, 0)
        found = Analysis.merge([analyzer.partial()])
    rows_encoded = FeatureTransform(resolve(spec, found))(columns)
    good = ~rows_encoded.bad.numpy().any(axis=1)
    ids, vals = rows_encoded.feature_ids.numpy(), rows_encoded.feature_vals.numpy()
    return TrialRows(ids[good], vals[good], positive[places][good])
