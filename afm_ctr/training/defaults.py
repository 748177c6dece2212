"""The config of a run that is given none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from afm_ctr.records import Manifest
from afm_ctr.schema import ResolvedSchema
from afm_ctr.sizing import DataSize, settings_for
from afm_ctr.training.config import CONFIG, TrainConfig


def default_config(
    data_dir: str | Path, model_dir: Path, origin: Path | None = None, overrides: Sequence[str] = ()
) -> TrainConfig:
    """That of the run in ``model_dir``, or of the one that it continues, or one sized to the data.

    Args:
        data_dir: a prepared data set.
        model_dir: the run's folder, which need not be there.
        origin: another run's folder, or that of one of its checkpoints.
        overrides: ``key.path=value``, over it.

    Raises:
        UserError: no data set there, or an override that does not fit.
    """
    folders = [model_dir, *([] if origin is None else [origin, origin.parent.parent])]
    for folder in folders:
        if (folder / CONFIG).is_file():
            return TrainConfig.load(folder / CONFIG, list(overrides))
    content = settings_for(data_size(data_dir)).content
    config = TrainConfig.from_content(content, overrides)
    if config.model.name == "lr":  # which has no vectors to penalise
        content["row_l2"].pop("vectors", None)
        config = TrainConfig.from_content(content, overrides)
    return config


def data_size(data_dir: str | Path) -> DataSize:
    """Of a prepared data set, by its manifest.

    Raises:
        UserError: no data set there.
    """
    manifest, schema = Manifest.load(data_dir, check_files=False), ResolvedSchema.load(data_dir)
    splits = manifest.splits
    found = manifest.statistics
    distinct = {} if found is None else {field.name: field.distinct for field in found.fields}
    rows = splits.get("train") or manifest.rows_out
    return DataSize.of(schema.spec, max(rows, 1), distinct, validated=bool(splits.get("valid")))
