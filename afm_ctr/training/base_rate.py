"""What the labels of the train split say without a model: the bias of a fresh one, and the loss that it must beat."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afm_ctr.distributed import World
from afm_ctr.errors import UserError
from afm_ctr.models import CTRModel
from afm_ctr.records import Manifest
from afm_ctr.records.blocks import SplitBlocks
from afm_ctr.records.parsing import parse_examples
from afm_ctr.training.progress import Say


class LabelSums(NamedTuple):
    """Over the rows of a split, as they are trained on: with the weights that undo a thinning of negatives."""

    weight: float  # Σ w
    labels: float  # Σ w·label

    @property
    def mean(self) -> float | None:
        """The weighted mean of the labels, for binary ones the base rate; None where no row has a weight."""
        return self.labels / self.weight if self.weight else None


def label_sums(
    data_dir: str | Path, manifest: Manifest, split: str, num_slots: int, world: World, say: Say
) -> LabelSums | None:
    """The same on every rank, however many there are; all of them must call it.

    From the manifest. One of an older version does not hold the sums: then the ranks share a pass over the records,
    and the blocks' sums are added in the blocks' order.

    Returns:
        None where a record cannot be read: whoever trains on it says so better.
    """
    shards = manifest.shards_of(split)
    known = [shard.label_sums for shard in shards if shard.label_sums is not None]
    if len(known) < len(shards):
        say(f"reading the labels of split {split!r} once: a data set prepared by this version holds their sums")
        known = [pair for pair in _by_block(data_dir, manifest, split, num_slots, world) if pair is not None]
    sums = LabelSums(math.fsum(weight for weight, _ in known), math.fsum(labels for _, labels in known))
    return sums if all(map(math.isfinite, sums)) else None


def _by_block(
    data_dir: str | Path, manifest: Manifest, split: str, num_slots: int, world: World
) -> list[tuple[float, float]]:
    blocks = SplitBlocks(data_dir, manifest, split)
    mine: dict[int, tuple[float, float]] = {}
    for block in range(world.rank, len(blocks.rows), world.size):
        try:
            rows = parse_examples(blocks.records(block, np.arange(blocks.rows[block])), num_slots)
        except UserError:
            mine[block] = (math.nan, math.nan)
            break
        weights = rows["weight"].astype(np.float64)
        counted = weights > 0
        mine[block] = (math.fsum(weights[counted]), math.fsum((weights * rows["label"])[counted]))
    parts = {block: pair for part in world.allgather_object(mine) for block, pair in part.items()}
    return [parts[block] for block in sorted(parts)]


def initial_bias(model: CTRModel, sums: LabelSums) -> float | None:
    """The bias for which the loss over the split is least while all else is zero.

    The logit of the base rate under log loss, the mean under squared loss, on that loss's scale: −1 and 1 for
    binary labels. A correction by ``bias_offset`` is not in it: what is trained on are the thinned negatives.

    Returns:
        None where there is none: no row has a weight, or under log loss all rows are of one class.
    """
    mean = sums.mean
    if mean is None:
        return None
    if model.loss_kind == "squared":
        return 2.0 * mean - 1.0 if model.label_kind == "binary" else mean
    return math.log(mean) - math.log1p(-mean) if 0.0 < mean < 1.0 else None
