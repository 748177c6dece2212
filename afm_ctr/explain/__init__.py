"""Which pairs of fields matter to a trained model, over a split and for single rows: tables, pictures, a page."""

from afm_ctr.explain.command import explain, explain_model
from afm_ctr.explain.explanation import Explanation, PairEffect, RowFacts
from afm_ctr.explain.tables import table
from afm_ctr.explain.trust import Agreement, rank_correlation

__all__ = [
    "Agreement",
    "Explanation",
    "PairEffect",
    "RowFacts",
    "explain",
    "explain_model",
    "rank_correlation",
    "table",
]
