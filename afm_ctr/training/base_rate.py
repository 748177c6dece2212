"""The base rate of the train split: the initial bias of a model, and the loss of a constant that it must beat."""

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
    """Sums over the rows of a split, with the weights of training, which undo a thinning of negatives."""

    weight: float  # Σ w
    labels: float  # Σ w·label

    @property
    def mean(self) -> float | None:
        """The weighted mean of the labels, for binary ones the base rate; None if no row has a weight."""
        return self.labels / self.weight if self.weight else None


def label_sums(
    data_dir: str | Path, manifest: Manifest, split: str, num_slots: int, world: World, say: Say
) -> LabelSums | None:
    """The sums of a split, the same on every rank and for any number of ranks; all ranks must call it.

    They come from the manifest. One of an older version lacks them: then the ranks share a pass over the records, and
    the sums of blocks are added in the blocks' order.

    Returns:
        None if a record cannot be read: the training reports it better.
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
    """The bias with the least loss over the split while all other weights are zero.

    The logit of the base rate under log loss; the mean under squared loss, on that loss's scale: −1 and 1 for
    binary labels. A correction by ``bias_offset`` is not included: training sees the thinned negatives.

    Returns:
        None if it is undefined: no row has a weight, or under log loss all rows are of one class.
    """
    mean = sums.mean
    if mean is None:
        return None
    if model.loss_kind == "squared":
        return 2.0 * mean - 1.0 if model.label_kind == "binary" else mean
    return math.log(mean) - math.log1p(-mean) if 0.0 < mean < 1.0 else None
