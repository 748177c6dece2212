"""Which pairs of fields matter to a trained model, over a split or for one row, as tables and pictures."""

from afm_ctr.explain.command import explain
from afm_ctr.explain.explanation import Explanation, PairEffect, RowFacts, rank_correlation

__all__ = ["Explanation", "PairEffect", "RowFacts", "explain", "rank_correlation"]
