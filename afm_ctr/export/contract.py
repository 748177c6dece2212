"""The contract of an exported model's signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHOD = "tensorflow/serving/predict"
SCORES = ("probability", "score")

Spec = tuple[str, list[int] | None]


def signature_faults(signatures: Mapping[str, Mapping[str, Any]], slots: int, pairs: int) -> list[str]:
    """How signatures differ from the contract of :func:`afm_ctr.export.export_model`; empty if they do not.

    Args:
        signatures: by name ``{"method", "inputs", "outputs"}``, tensors by name as (type, shape or None).
    """
    missing = [name for name in ("serving_default", "examples", "raw") if name not in signatures]
    if missing:
        return [f"there is no signature {name}" for name in missing]
    by_ids = {"feature_ids": ("int64", [-1, slots]), "feature_vals": ("float32", [-1, slots])}
    score = next((name for name in SCORES if name in signatures["serving_default"]["outputs"]), SCORES[0])
    bad = {"bad_cells": ("int32", [-1])}
    scores = {score: ("float32", [-1]), "logit": ("float32", [-1]), **bad}
    columns = dict.fromkeys(signatures["raw"]["inputs"], ("string", [-1]))
    wanted = {
        "serving_default": (by_ids, scores),
        "examples": ({"examples": ("string", [-1])}, scores),
        "raw": (columns, scores),
        "explain": (by_ids, {"attention": ("float32", [-1, pairs]), **bad}),
    }
    faults = [f"{name} is not a signature of the contract" for name in sorted(set(signatures) - set(wanted))]
    for name, (inputs, outputs) in wanted.items():
        if name not in signatures:
            continue
        found = signatures[name]
        if found["method"] != METHOD:
            faults.append(f"{name}: the method is {found['method']}, not {METHOD}")
        faults += _differences(f"{name}: input", found["inputs"], inputs)
        faults += _differences(f"{name}: output", found["outputs"], outputs)
    return faults


def _differences(where: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    faults = [f"{where} {name} is missing" for name in sorted(set(wanted) - set(found))]
    faults += [f"{where} {name} is one too many" for name in sorted(set(found) - set(wanted))]
    for name in sorted(set(found) & set(wanted)):
        if tuple(found[name]) != tuple(wanted[name]):
            faults.append(f"{where} {name} is {_shown(found[name])}, not {_shown(wanted[name])}")
    return faults


def _shown(spec: Spec) -> str:
    dtype, shape = spec
    return f"{dtype} {'of unknown rank' if shape is None else shape}"
