"""Transforms raw columns into ids and values, for preparation, offline prediction and serving alike."""

from afm_ctr.features.transform import Encoded, FeatureTransform

__all__ = ["Encoded", "FeatureTransform"]
