"""Logistic regression of scikit-learn on the Telco customers: texts one-hot, numbers standardised."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = ("tenure", "MonthlyCharges", "TotalCharges")
NOT_FEATURES = (*NUMBERS, "customerID", "Churn")


def fit(log: Path, split: Path) -> dict[str, Any]:
    """``labels`` and ``logits`` of the test split, float64 [n] each, and ``seconds``.

    Args:
        log: the customers.
        split: the split's name of each, a line each.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    with log.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    train = np.array(split.read_text().split()) == "train"
    labels = np.array([row["Churn"] == "Yes" for row in rows], float)
    texts = np.array([[cell for name, cell in row.items() if name not in NOT_FEATURES] for row in rows])
    numbers = np.array([[float(row[name].strip() or 0) for name in NUMBERS] for row in rows])
    began = time.monotonic()
    coder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(texts[train])
    scaler = StandardScaler().fit(numbers[train])
    features = np.hstack([coder.transform(texts), scaler.transform(numbers)])
    model = LogisticRegression(max_iter=5000).fit(features[train], labels[train])
    logits = model.decision_function(features[~train])
    return {"labels": labels[~train], "logits": logits, "seconds": round(time.monotonic() - began, 1)}
