"""The oracle's own gradients, against central differences."""

from __future__ import annotations

import numpy as np
import oracle
import pytest


@pytest.mark.parametrize("scale_by_pairs", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
def test_gradients_are_central_differences(scale_by_pairs: bool, dropout: bool) -> None:
    rng = np.random.default_rng(3)
    slots, k, t = 4, 3, 2
    pairs = oracle.all_pairs(slots)
    parameters = oracle.random_parameters(rng, 6, k, t)
    ids = np.array([[1, 2, 3, 4], [5, 0, 1, 1], [0, 0, 2, 0], [0, 0, 0, 0]])
    values = rng.normal(size=ids.shape)
    values[0, 1] = 0.0
    upstream = rng.normal(size=len(ids))
    keeps = {}
    if dropout:
        keeps = {"pair_keep": rng.choice([0.0, 2.0], (4, len(pairs))), "pooled_keep": rng.choice([0.0, 2.0], (4, k))}

    def objective() -> float:
        logits, _, _ = oracle.afm(parameters, ids, values, pairs, scale_by_pairs=scale_by_pairs, **keeps)
        return float(np.dot(upstream, logits))

    _, _, gradients = oracle.afm(parameters, ids, values, pairs, upstream, scale_by_pairs, **keeps)
    step = 1e-6
    for name, value in parameters.items():
        for position in np.ndindex(value.shape):
            if name in ("w", "v") and position[0] == 0:
                assert gradients[name][position] == 0.0
                continue
            kept = value[position] if value.shape else float(value)
            found = []
            for sign in (1, -1):
                parameters[name] = value.copy()
                parameters[name][position] = kept + sign * step
                found.append(objective())
            parameters[name] = value
            assert gradients[name][position] == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-5, abs=1e-7)
