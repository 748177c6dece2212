"""The config of a run without ``--config``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afm_ctr.errors import UserError
from afm_ctr.models import check_model
from afm_ctr.sizing import UNKNOWN, DataSize, settings_for
from afm_ctr.training.config import CONFIG, TrainConfig

if TYPE_CHECKING:
    from afm_ctr.penalty import TrialRows

_STRETCH = 512  # rows


def known_config(model_dir: Path, origin: Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig | None:
    """The config of the run in ``model_dir``, or of the one that it continues; ``None``: it is sized to the data.

    Args:
        model_dir: the run's folder, which need not exist.
        origin: the folder of another run, or of one of its checkpoints.

    Raises:
        UserError: an override that no config accepts.
    """
    folders = [model_dir, *([] if origin is None else [origin, origin.parent.parent])]
    for folder in folders:
        if (folder / CONFIG).is_file():
            return TrainConfig.load(folder / CONFIG, list(overrides))
    _check_overrides(overrides)
    return None


def default_config(
    data_dir: str | Path, model_dir: Path, origin: Path | None = None, overrides: Sequence[str] = ()
) -> TrainConfig:
    """:func:`known_config`, or one sized to the data, reading rows with TensorFlow: call it once a rank has its GPU.

    Raises:
        UserError: no data set there, or an override that does not fit.
    """
    known = known_config(model_dir, origin, overrides)
    if known is not None:
        return known
    content = settings_for(data_size(data_dir)).content
    config = TrainConfig.from_content(content, overrides)
    if config.model.name == "lr":  # no vectors to penalise
        content["row_l2"].pop("vectors", None)
        config = TrainConfig.from_content(content, overrides)
    return config


def _check_overrides(overrides: Sequence[str]) -> None:
    """Refuse overrides that are wrong for any data, before the libraries that read data sets are loaded."""
    refusals = []
    for size in (DataSize(1000, 100, 100, 3), DataSize(1000, 100, 100, 3, validated=False)):
        try:
            config = TrainConfig.from_content(settings_for(size).content, overrides)
            if overrides:
                check_model(config.model.name, config.model.options)
        except UserError as error:
            refusals.append(error)
    if len(refusals) == 2 and str(refusals[0]) == str(refusals[1]):
        raise refusals[0]


def data_size(data_dir: str | Path) -> DataSize:
    """The size of a prepared data set, by its manifest, with the signals of some train rows.

    Raises:
        UserError: no data set there, or a damaged one.
    """
    from afm_ctr.pair_signal import signals_of
    from afm_ctr.records import Manifest
    from afm_ctr.schema import ResolvedSchema

    manifest, schema = Manifest.load(data_dir, check_files=False), ResolvedSchema.load(data_dir)
    splits = manifest.splits
    found = manifest.statistics
    distinct = {} if found is None else {field.name: field.distinct for field in found.fields}
    rows = splits.get("train") or manifest.rows_out
    tells = manifest.labelled and splits.get("train")
    signals = signals_of(some_rows(data_dir, len(schema.slots))) if tells else UNKNOWN
    return DataSize.of(schema.spec, max(rows, 1), distinct, validated=bool(splits.get("valid")), signals=signals)


def some_rows(data_dir: str | Path, slots: int) -> TrialRows:
    """Rows of the train split, in stretches spread evenly over it."""
    import numpy as np

    from afm_ctr.penalty import TrialRows, rows_to_try
    from afm_ctr.records import Reader

    reader = Reader(data_dir, "train", _STRETCH, shuffle=False)
    stretches = min(reader.steps_per_epoch, -(-rows_to_try(slots) // _STRETCH))
    columns, parts = ("feature_ids", "feature_vals", "label", "weight"), []
    for step in np.arange(stretches) * reader.steps_per_epoch // stretches:
        batch = reader.batch(0, int(step), columns)
        parts.append([batch[name][: reader.local_rows(int(step))] for name in columns])
    return TrialRows(*(np.concatenate(found) for found in zip(*parts, strict=True)))
