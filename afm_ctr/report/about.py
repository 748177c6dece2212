"""The sections of a report that do not need the model: data, config, environment, learning curves, throughput."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np

from afm_ctr.report import figures
from afm_ctr.report.record import Judged, RunRecord
from afm_ctr.training import TrainConfig
from afm_ctr.training.config import flat
from afm_ctr.training.run_dir import data_id
from afm_ctr.webpage import Page

_SHOWN = 6  # decimals


def number(value: float | int | None, decimals: int = _SHOWN) -> str:
    """A number as a table shows it; "" for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.{decimals}f}"


def command_of(run: dict[str, Any]) -> str:
    """The command line of a run, if it was recorded."""
    words = [str(word) for word in run.get("command") or []]
    return shlex.join(["afm-ctr", *words]) if words and words[0] != "afm-ctr" else shlex.join(words)


def add_data(page: Page, record: RunRecord, judged: Judged) -> None:
    """The data set's content and origin, and whether it is the run's."""
    page.section("Data")
    manifest = judged.manifest
    if manifest is None:
        page.paragraph(judged.why_not)
        page.facts({"data set of the run": str(record.run.get("data", "")), "schema": record.run.get("schema_id")})
        return
    page.table(
        ["split", "rows", "positive", "share", "shards"],
        [
            [
                split,
                number(rows),
                number(positives) if manifest.labelled else None,
                f"{positives / rows:.2%}" if manifest.labelled and rows else None,
                number(len(shards)),
            ]
            for split, rows in manifest.splits.items()
            for shards in ([shard for shard in manifest.shards if shard.split == split],)
            for positives in (sum(shard.positives for shard in shards),)
        ],
        caption="rows by split; positive: the label is above 0" if manifest.labelled else "rows by split; no labels",
        numeric=["rows", "positive", "share", "shards"],
    )
    facts: dict[str, str | int | None] = {
        "folder": judged.folder,
        "rows read": number(manifest.rows_in),
        "rejected": ", ".join(f"{reason} {count:,}" for reason, count in manifest.rejects.items()) or "none",
    }
    if manifest.sampled_out:
        facts["negatives sampled out"] = number(manifest.sampled_out)
    if manifest.side_tables:
        facts["joined tables"] = ", ".join(f"{name} ({t.rows:,} rows)" for name, t in manifest.side_tables.items())
    facts |= {
        "split rule": manifest.split_rule or "not recorded",
        "schema": manifest.schema_id,
        "command": manifest.command or "not recorded",
        "versions": _versions(manifest.versions),
        "written": manifest.created or "not recorded",
    }
    page.facts(facts)
    if not _is_of_run(record, judged):
        page.paragraph("This is not the data that the run was trained on: its train split differs.")


def _is_of_run(record: RunRecord, judged: Judged) -> bool:
    manifest, split, known = judged.manifest, record.config.train_split, record.run.get("data_id")
    if manifest is None or known is None or not manifest.splits.get(split):
        return known is None or manifest is None
    return any(session.get("data_id") == data_id(manifest, split) for session in [record.run, *record.sessions])


def add_config(page: Page, config: TrainConfig) -> None:
    """Every key of the config, with its default."""
    page.section("Config", "Values other than the default are highlighted; keys without one belong to the model.")
    given, default = (flat(one.model_dump(mode="json")) for one in (config, TrainConfig()))
    rows, marked = [], []
    for place, (key, value) in enumerate(given.items()):
        known = key in default
        if not known or value != default[key]:
            marked.append(place)
        rows.append([key, _plain(value), _plain(default[key]) if known else _plain_parent(key, default)])
    page.table(["key", "value", "default"], rows, marked=marked)


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _plain_parent(key: str, default: dict[str, Any]) -> str | None:
    """``null`` for a key of a section that is off by default."""
    return "null" if default.get(key.rpartition(".")[0], "") is None else None


def add_surroundings(page: Page, record: RunRecord) -> None:
    """Versions, ranks and machine of every ``train`` call."""
    page.section("Environment")
    sessions = record.sessions
    last = sessions[-1]
    machine = last.get("machine")
    kind = "not recorded: an earlier afm-ctr trained it"
    if machine:
        gpus = machine.get("gpus") or []
        kind = f"{machine.get('processor')}, {machine.get('cores')} cores, {machine.get('system')}, " + (
            ", ".join(gpus) if gpus else "no GPU"
        )
    page.facts(
        {
            "command": command_of(last) or "not recorded",
            "versions": _versions(last.get("versions", {})),
            "machine of rank 0": kind,
            "ranks": last.get("world_size", "not recorded"),
            "started": last.get("started"),
        }
    )
    if len(sessions) > 1:
        page.table(
            ["started", "ranks", "resumed after step", "versions"],
            [
                [
                    one.get("started"),
                    one.get("world_size"),
                    one.get("resumed_from"),
                    _versions(one.get("versions", {})),
                ]
                for one in sessions
            ],
            caption=f"{len(sessions)} calls of train",
            numeric=["ranks", "resumed after step"],
        )


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded"


def add_curves(page: Page, record: RunRecord, best: dict[str, Any] | None) -> None:
    """The history as curves and as a table."""
    page.section("Learning curves", "The same as TensorBoard shows below epoch/, from history.jsonl.")
    history = record.history
    if not history:
        page.paragraph("No epoch has ended yet: there are no curves.")
        return
    validated = any(key.startswith("val_") for one in history for key in one)
    if not validated:
        page.paragraph("The run has no validation (validation: null): nothing but the training loss was watched.")
    best_epoch = None if best is None else int(best["epoch"])
    if best is not None:
        page.paragraph(f"Best epoch: {best['epoch'] + 1}, by {best['metric']} {number(best['value'])}.")
    constants = {"training": "constant_loss", "validation": "val_constant_log_loss"}
    known = [
        f"{history[-1][key]:.6f} in {name}" for name, key in constants.items() if history[-1].get(key) is not None
    ]
    if known:
        page.paragraph(f"Log loss of a constant, the share of positives: {', '.join(known)}.")
    page.figure(
        figures.curves(history, best_epoch),
        "Training loss (with dropout, mean over the epoch while it was running) and validation after each epoch.",
        f"line charts over {len(history)} epochs; the figures are in the table below",
    )
    shown = ["loss", "val_auc", "val_group_auc", "val_log_loss", "val_normalised_entropy", "val_rmse"]
    shown.append("val_calibration")
    shown = [key for key in shown if any(one.get(key) is not None for one in history)]
    header = ["epoch", "step", *shown, "learning rate", "rows/s"]
    page.table(
        header,
        [
            [
                one["epoch"] + 1,
                number(one["step"]),
                *(number(one.get(key)) for key in shown),
                f"{one['learning_rate']:.3g}",
                _whole(one.get("rows_per_second")),
            ]
            for one in history
        ],
        numeric=header,
        marked=[place for place, one in enumerate(history) if one["epoch"] == best_epoch],
        folded=len(history) > 30,
        caption="all epochs" if len(history) > 30 else "",
    )


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def add_speed(page: Page, record: RunRecord) -> None:
    """Training rows per second, and the parts of a step if they were profiled."""
    page.section("Throughput")
    speeds = [one["rows_per_second"] for one in record.history if one.get("rows_per_second")]
    if not speeds:
        page.paragraph("No whole epoch was timed: the speed is not known.")
    else:
        ranks = sorted({one["world_size"] for one in record.sessions if "world_size" in one})
        page.facts(
            {
                "rows per second, median of the epochs": f"{np.median(speeds):,.0f}",
                "slowest and fastest epoch": f"{min(speeds):,.0f} and {max(speeds):,.0f}",
                "seconds of training": f"{sum(one.get('seconds', 0.0) for one in record.history):,.1f}",
                "ranks": ", ".join(map(str, ranks)) or "not recorded",
            }
        )
        page.paragraph(
            "Over all ranks, steps only: validation, checkpoints and the first step of a call, which traces, are "
            "left out."
        )
    if record.profile is not None:
        took = record.profile["milliseconds"]
        page.table(
            ["part", "ms a step", "share"],
            [[part, f"{ms:.2f}", f"{ms / took['step']:.1%}" if took["step"] else None] for part, ms in took.items()],
            caption=f"profile of {record.profile['steps']} steps of {record.profile['batch_size']:,} rows",
            numeric=["ms a step", "share"],
        )
