"""Raw columns become ids and values: the one definition for Beam workers, offline prediction and serving."""

from afm_ctr.features.transform import Encoded, FeatureTransform

__all__ = ["Encoded", "FeatureTransform"]
