"""AFM in float64 NumPy and Python loops, forward and backward, one example at a time.

It follows the formulas and nothing else, so that every claim of exactness can be held against it:

    y     = w0 + Σ w_i x_i + Σ_{i<j} a_ij pᵀ(v_i ⊙ v_j) x_i x_j
    a'_ij = hᵀ relu(Wᵀ (v_i ⊙ v_j) x_i x_j + b),   a = softmax of a' over the pairs of present slots

The gradients are derived by hand; `test_oracle.py` holds them against central differences.
"""

from __future__ import annotations

import numpy as np


def random_parameters(rng: np.random.Generator, feature_size: int, k: int, t: int) -> dict[str, np.ndarray]:
    """All parameters of a model, large enough for attention to be far from uniform; row 0 is zero."""
    parameters = {
        "w0": rng.normal(size=()),
        "w": rng.normal(size=feature_size),
        "v": rng.normal(size=(feature_size, k)),
        "W": rng.normal(size=(k, t)),
        "b": rng.normal(size=t),
        "h": rng.normal(size=t),
        "p": rng.normal(size=k),
    }
    parameters["w"][0] = 0
    parameters["v"][0] = 0
    return parameters


def all_pairs(slots: int) -> np.ndarray:
    """All (i, j), i < j, in lexicographic order."""
    return np.array([(i, j) for i in range(slots) for j in range(i + 1, slots)], np.int32).reshape(-1, 2)


def afm_example(
    parameters: dict[str, np.ndarray],
    ids: np.ndarray,
    values: np.ndarray,
    pairs: np.ndarray,
    upstream: float = 0.0,
    gradients: dict[str, np.ndarray] | None = None,
    scale_by_pairs: bool = False,
    pair_keep: np.ndarray | None = None,
    pooled_keep: np.ndarray | None = None,
) -> tuple[float, np.ndarray]:
    """The logit and the attention ``[P]`` of one example; adds upstream · ∂logit/∂parameter to the gradients."""
    w0, w, v, W, b, h, p = (parameters[name] for name in ("w0", "w", "v", "W", "b", "h", "p"))
    k, t = W.shape
    keep_pooled = np.ones(k) if pooled_keep is None else pooled_keep
    here = [q for q, (i, j) in enumerate(pairs) if ids[i] != 0 and ids[j] != 0]
    scale = float(len(here)) if scale_by_pairs else 1.0

    logit = float(w0)
    for i, feature in enumerate(ids):
        if feature != 0:
            logit += w[feature] * values[i]
    products, before, scores = {}, {}, {}
    for q in here:
        i, j = pairs[q]
        products[q] = v[ids[i]] * v[ids[j]] * values[i] * values[j]
        before[q] = np.array([sum(W[x, y] * products[q][x] for x in range(k)) + b[y] for y in range(t)])
        scores[q] = sum(h[y] * max(before[q][y], 0.0) for y in range(t))
    attention = np.zeros(len(pairs))
    highest = max(scores.values(), default=0.0)
    total = sum(np.exp(score - highest) for score in scores.values())
    pooled = np.zeros(k)
    for q in here:
        attention[q] = np.exp(scores[q] - highest) / total
        kept = 1.0 if pair_keep is None else pair_keep[q]
        pooled += attention[q] * kept * scale * products[q]
    logit += float(np.dot(p, keep_pooled * pooled))
    if gradients is None:
        return logit, attention

    gradients["w0"] += upstream
    for i, feature in enumerate(ids):
        if feature != 0:
            gradients["w"][feature] += upstream * values[i]
    gradients["p"] += upstream * keep_pooled * pooled
    by_pooled = upstream * p * keep_pooled
    by_attention = {
        q: scale * (1.0 if pair_keep is None else pair_keep[q]) * float(np.dot(by_pooled, products[q])) for q in here
    }
    mean = sum(attention[q] * by_attention[q] for q in here)
    for q in here:
        i, j = pairs[q]
        kept = 1.0 if pair_keep is None else pair_keep[q]
        by_score = attention[q] * (by_attention[q] - mean)
        by_product = attention[q] * kept * scale * by_pooled
        for y in range(t):
            gradients["h"][y] += by_score * max(before[q][y], 0.0)
            if before[q][y] > 0:
                gradients["b"][y] += by_score * h[y]
                for x in range(k):
                    gradients["W"][x, y] += by_score * h[y] * products[q][x]
                    by_product[x] += by_score * h[y] * W[x, y]
        gradients["v"][ids[i]] += by_product * values[i] * values[j] * v[ids[j]]
        gradients["v"][ids[j]] += by_product * values[i] * values[j] * v[ids[i]]
    return logit, attention


def afm(
    parameters: dict[str, np.ndarray],
    ids: np.ndarray,
    values: np.ndarray,
    pairs: np.ndarray,
    upstream: np.ndarray | None = None,
    scale_by_pairs: bool = False,
    pair_keep: np.ndarray | None = None,
    pooled_keep: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Logits ``[B]``, attention ``[B, P]`` and the gradients of Σ upstream · logit by every parameter."""
    upstream = np.zeros(len(ids)) if upstream is None else upstream
    gradients = {name: np.zeros_like(value) for name, value in parameters.items()}
    logits, attentions = [], []
    for row in range(len(ids)):
        logit, attention = afm_example(
            parameters,
            ids[row],
            values[row],
            pairs,
            float(upstream[row]),
            gradients,
            scale_by_pairs,
            None if pair_keep is None else pair_keep[row],
            None if pooled_keep is None else pooled_keep[row],
        )
        logits.append(logit)
        attentions.append(attention)
    return np.array(logits), np.array(attentions).reshape(len(ids), len(pairs)), gradients


def fm(parameters: dict[str, np.ndarray], ids: np.ndarray, values: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Logits ``[B]`` of a factorization machine: no attention and no p."""
    logits = []
    for row_ids, row in zip(ids, values, strict=True):
        logit = float(parameters["w0"])
        for i, feature in enumerate(row_ids):
            logit += parameters["w"][feature] * row[i] if feature else 0.0
        for i, j in pairs:
            if row_ids[i] and row_ids[j]:
                inner = float(np.dot(parameters["v"][row_ids[i]], parameters["v"][row_ids[j]]))
                logit += inner * row[i] * row[j]
        logits.append(logit)
    return np.array(logits)
