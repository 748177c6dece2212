"""The data sets that models are compared on: where they are, how they are split, what is asked of whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
CONFIGS = Path(__file__).with_name("configs")
FIRST_SEED = 2021  # and the next ones
IMPROVED = "deep_afm"


@dataclass(frozen=True)
class Check:
    """What is asked of a model's mean over the seeds.

    Attributes:
        model: by the name of its config.
        metric: of the split that is reported.
        sign: ``>=`` or ``<=``.
        value: the figure asked for, or
        other: the model to compare with.
        margin: by how much the model may be worse than the other; None: by two standard errors of the difference.
    """

    model: str
    metric: str
    sign: Literal[">=", "<="]
    value: float | None = None
    other: str | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
        files: below the data folder, all of them needed.
        schema: of the examples.
        split: makes the ``--split`` of ``prepare``, from the folder to write to, and its ``--input``.
        report: the split whose figures the table shows: the models' epochs are chosen on ``valid``, if there is one.
        seeds: how many.
        metrics: columns of the table.
        checks: what is asked.
        keep: whether trained models stay, so that more files can be scored; they may be large.
    """

    files: tuple[str, ...]
    schema: str
    split: Callable[[Path, Path], list[str]]
    report: str
    seeds: int
    metrics: tuple[str, ...] = ("auc", "log_loss")
    checks: tuple[Check, ...] = ()
    keep: bool = False

    def paths(self, data: Path) -> list[Path]:
        return [data / name for name in self.files]


def split_frappe(data: Path, folder: Path) -> list[str]:
    train, valid = (data / f"frappe/frappe.{name}.libfm.gz" for name in ("train", "validation"))
    return ["--split", f"files:train={train},valid={valid}"]


def split_telco(data: Path, folder: Path) -> list[str]:
    """scikit-learn's split of the file's order."""
    from sklearn.model_selection import train_test_split

    log = data / TELCO
    rows = len(log.read_text(encoding="utf-8").splitlines()) - 1
    _, test = train_test_split(np.arange(rows), test_size=0.1, random_state=10)
    names = np.full(rows, "train", dtype=object)
    names[test] = "test"
    index = folder / "split.txt"
    index.write_text("".join(f"{name}\n" for name in names))
    return ["--input", str(log), "--split", f"index:{index}"]


def split_movielens(data: Path, folder: Path) -> list[str]:
    """The earliest 80 % of the ratings, then 10 and 10 %: by their time, as the file is in no order."""
    log = data / "movielens-100k/u.data"
    times = np.array([int(line.split("\t")[3]) for line in log.read_text(encoding="utf-8").splitlines()])
    names = np.full(len(times), "train", dtype=object)
    order = np.argsort(times, kind="stable")
    names[order[int(0.8 * len(order)) :]] = "valid"
    names[order[int(0.9 * len(order)) :]] = "test"
    index = folder / "split.txt"
    index.write_text("".join(f"{name}\n" for name in names))
    return ["--input", str(log), "--split", f"index:{index}"]


def split_criteo(data: Path, folder: Path) -> list[str]:
    return ["--input", str(data / "criteo/criteo_120k.tsv.gz"), "--split", "tail:0.1/0.1"]


TELCO = "telco/WA_Fn-UseC_-Telco-Customer-Churn.csv"
ASKED_OF_TELCO: tuple[tuple[str, Literal[">=", "<="], float], ...] = (
    ("accuracy", ">=", 0.7986),
    ("recall", ">=", 0.4843),
    ("log_loss", "<=", 0.3909),
)
NOT_WORSE = (
    Check("afm", "auc", ">=", other="fuxictr-afm"),
    Check(IMPROVED, "auc", ">=", other="fm"),
)

DATASETS = {
    "frappe": Dataset(
        files=("frappe/frappe.train.libfm.gz", "frappe/frappe.validation.libfm.gz"),
        schema="examples/frappe/schema.yaml",
        split=split_frappe,
        report="valid",
        seeds=3,
        checks=(
            Check("fm", "auc", ">=", other="fuxictr-fm", margin=0.001),
            Check("afm", "auc", ">=", 0.9697),
            Check(IMPROVED, "auc", ">=", 0.980),
        ),
        keep=True,
    ),
    "telco": Dataset(
        files=(TELCO,),
        schema="examples/telco/schema.yaml",
        split=split_telco,
        report="test",
        seeds=10,
        metrics=("accuracy", "recall", "log_loss", "auc"),
        checks=tuple(
            Check(model, metric, sign, value) for model in ("afm", IMPROVED) for metric, sign, value in ASKED_OF_TELCO
        ),
    ),
    "movielens": Dataset(
        files=("movielens-100k/u.data", "movielens-100k/u.user", "movielens-100k/u.item"),
        schema="examples/movielens-100k/schema.yaml",
        split=split_movielens,
        report="test",
        seeds=5,
        checks=NOT_WORSE,
    ),
    "criteo": Dataset(
        files=("criteo/criteo_120k.tsv.gz",),
        schema="examples/criteo/schema-small.yaml",
        split=split_criteo,
        report="test",
        seeds=5,
        checks=NOT_WORSE,
    ),
}
