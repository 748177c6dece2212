"""A first hour with nothing edited: ``init``, ``prepare``, ``train``, against scikit-learn's logistic regression.

.venv/bin/python benchmarks/first_hour.py [NAME or FILE …] [--work FOLDER] [--rows N]

Each log goes through the commands that ``init`` prints. The logistic regression gets the same rows and ids one-hot
(numbers as their values); its C is the best of a grid by the log loss of the split ``valid``. The last column is the
mean over the rows of ours minus its loss, with the standard error of that mean; "ok": at most one of them above 0.
stdout gets the figures of the split ``test``; stderr those of ``valid``, by which the sizing rule was chosen.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))

from rows import Rows, read_split  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
LOGS: dict[str, tuple[str, list[str]]] = {
    "made": ("", []),
    "telco": ("telco/WA_Fn-UseC_-Telco-Customer-Churn.csv", []),
    "avazu": ("avazu/avazu_9999.csv.gz", []),
    "movielens": ("movielens-100k/u.data", ["--label", "c3"]),
    "frappe": ("frappe/frappe.train.libfm.gz", []),
    "criteo": ("criteo/criteo_120k.tsv.gz", []),
}
SPLITS = ("valid", "test")
GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_CLIPPED = 1e-7


def make_log(path: Path, rows: int = 20_000, seed: int = 0) -> None:
    """A shop's log in order of time: user, item, price (a tenth blank), tags (none to four), time, clicked.

    The log odds are a sum of the user, the item, its tags, the price and the hour, and of one pair: an age group of
    the users with a tag.
    """
    draw = np.random.default_rng(seed)
    users, items, tags = 1500, 300, ["new", "sale", "home", "sport", "books", "music", "food", "toys"]
    group = draw.integers(4, size=users)
    user_effect, item_effect = draw.normal(0, 0.7, users), draw.normal(0, 0.8, items)
    tag_effect, pair_effect = draw.normal(0, 0.4, len(tags)), draw.normal(0, 0.6, (4, len(tags)))
    tags_of = [draw.choice(len(tags), draw.integers(5), replace=False) for _ in range(items)]
    price_of = np.exp(draw.normal(3, 1, items))
    lines = ["user,item,price,tags,time,clicked"]
    moment = 1_700_000_000
    for _ in range(rows):
        moment += int(draw.integers(1, 180))
        user, item = (
            min(int(draw.exponential(users / 4)), users - 1),
            min(int(draw.exponential(items / 4)), items - 1),
        )
        price = price_of[item] * np.exp(draw.normal(0, 0.2))
        worn = tags_of[item]
        hour = moment // 3600 % 24
        logit = -1.2 + user_effect[user] + item_effect[item] - 0.3 * (np.log(price) - 3) + 0.4 * np.sin(hour / 3.8)
        logit += (tag_effect[worn].sum() + pair_effect[group[user], worn].sum()) / max(len(worn), 1)
        clicked = int(draw.random() < 1 / (1 + np.exp(-logit)))
        shown = "" if draw.random() < 0.1 else f"{price:.2f}"
        words = "|".join(tags[tag] for tag in worn)
        lines.append(f"u{user:04d},i{item:03d},{shown},{words},{moment},{clicked}")
    path.write_text("\n".join(lines) + "\n")


def first_rows(source: Path, target: Path, rows: int) -> None:
    """The first lines of a log, plain or gzip, as they are."""
    with gzip.open(source, "rb") if source.suffix == ".gz" else source.open("rb") as lines:
        target.write_bytes(b"".join(line for _, line in zip(range(rows), lines, strict=False)))


def afm_ctr(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("afm-ctr")), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return done.stdout


def ours(log: Path, folder: Path, options: list[str]) -> dict[str, Any]:
    """Run what ``init`` prints; by split the probabilities, float64 [n], and what ``init`` chose."""
    project = folder / "project"
    shutil.rmtree(project, ignore_errors=True)
    answer = afm_ctr("init", "--input", str(log), "--output", str(project), *options, "--json")
    started = json.loads(answer.splitlines()[-1])
    prepare, train = (shlex.split(line)[1:] for line in started["next"][:2])
    began = time.monotonic()
    afm_ctr(*prepare)
    prepared = time.monotonic()
    afm_ctr(*train)
    trained = time.monotonic()
    run, data, found = project / "run", project / "data", {}
    for split in SPLITS:
        scores = folder / f"{split}.jsonl"
        given = ("--model-dir", str(run), "--data", str(data), "--split", split, "--output", str(scores))
        afm_ctr("predict", *given)
        found[split] = np.array([json.loads(line)["probability"] for line in scores.read_text().splitlines()])
    return {
        "probabilities": found,
        "data": data,
        "model": started["settings"]["model"]["name"],
        "epochs": len((run / "history.jsonl").read_text().splitlines()),
        "seconds": (prepared - began, trained - prepared),
    }


def losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Log loss of each row, float64 [n]."""
    chance = np.clip(probabilities.astype(float), _CLIPPED, 1 - _CLIPPED)
    return -np.where(labels > 0, np.log(chance), np.log1p(-chance))


def logistic(data: Path) -> tuple[dict[str, np.ndarray], float]:
    """scikit-learn's probabilities by split, float64 [n] each, and the C that the split ``valid`` chose."""
    from sklearn.linear_model import LogisticRegression

    parts = {name: read_split(data, name) for name in ("train", *SPLITS)}
    width = int(max(part.ids.max() for part in parts.values())) + 1
    features = {name: one_hot(part, width) for name, part in parts.items()}
    tried = []
    for c in GRID:
        model = LogisticRegression(C=c, max_iter=300).fit(features["train"], parts["train"].labels)
        scores = {name: model.predict_proba(features[name])[:, 1] for name in SPLITS}
        tried.append((losses(parts["valid"].labels, scores["valid"]).mean(), c, scores))
    _, chosen, scores = min(tried, key=lambda one: one[0])
    return scores, chosen


def one_hot(rows: Rows, width: int) -> Any:
    """``[n, width]``, sparse: the value of each id that a row holds."""
    from scipy.sparse import csr_matrix

    count, slots = rows.ids.shape
    place = np.repeat(np.arange(count), slots)
    values = np.where(rows.ids > 0, rows.vals, 0.0).astype(float).ravel()
    return csr_matrix((values, (place, rows.ids.ravel())), shape=(count, width))


def line(name: str, found: dict[str, Any], theirs: np.ndarray, chosen: float, split: str) -> tuple[str, bool]:
    """A line of the table, and whether ours is at most one standard error behind."""
    labels = read_split(found["data"], split).labels
    our_loss, their_loss = losses(labels, found["probabilities"][split]), losses(labels, theirs)
    constant = losses(labels, np.full(len(labels), labels.mean())).mean()
    apart = our_loss - their_loss
    mean, error = float(apart.mean()), float(apart.std(ddof=1) / len(apart) ** 0.5)
    cells = (
        name,
        f"{len(labels):,}",
        f"{constant:.4f}",
        f"{their_loss.mean():.4f} ({chosen:g})",
        f"{our_loss.mean():.4f}",
        f"{found['model']}, {found['epochs']}",
        f"{mean:+.4f} ± {error:.4f}",
        "ok" if mean <= error else "missed",
    )
    return f"| {' | '.join(cells)} |", mean <= error


def compare(name: str, work: Path, rows: int | None) -> bool:
    """Print one log's lines; whether the figures of ``test`` are as asked for."""
    folder = work / Path(name).name.split(".")[0]
    folder.mkdir(parents=True, exist_ok=True)
    source, options = LOGS.get(name, (str(Path(name).resolve()), []))
    log = folder / (f"{name}.csv" if not source else Path(source).name.removesuffix(".gz"))
    if source:
        first_rows(DATA / source, log, rows or sys.maxsize)
    else:
        make_log(log)
    found = ours(log, folder, options)
    theirs, chosen = logistic(found["data"])
    prepared, trained = found["seconds"]
    valid, _ = line(name, found, theirs["valid"], chosen, "valid")
    test, passed = line(name, found, theirs["test"], chosen, "test")
    print(f"valid: {valid} prepare {prepared:.0f} s, train {trained:.0f} s", file=sys.stderr, flush=True)
    print(test, flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(LOGS)}, or a file; default: all")
    parser.add_argument("--work", type=Path, help="folder that stays; default: a temporary one")
    parser.add_argument("--rows", type=int, help="lines of each public log; default: all")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in LOGS and not Path(name).is_file()]
    if unknown:
        parser.error(f"no such log: {', '.join(unknown)}; there are {', '.join(LOGS)}")
    print("| log | test rows | constant | scikit-learn (C) | ours | model, epochs | difference ± s.e. | |")
    print("|---|--:|--:|--:|--:|---|--:|---|", flush=True)
    missed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names or LOGS:
            source = LOGS.get(name, ("", []))[0]
            if source and not (DATA / source).exists():
                print(f"| {name} | not here: {DATA / source} |", flush=True)
                continue
            missed += not compare(name, options.work or Path(scratch), options.rows)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
