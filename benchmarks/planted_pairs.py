"""Does `explain` find the field pairs that make-logs plants? One model per seed, from synthetic logs to ranks.

    .venv/bin/python benchmarks/planted_pairs.py
    .venv/bin/python benchmarks/planted_pairs.py --set 'model={name: fm, factors: 16}'

For each seed separate logs are written, prepared and trained on with the config of `make demo`, but with fewer rows
in smaller batches; the pairs are ranked on the test split. The planted pairs must rank first by the effect of a
pair's removal: if one does not, the exit code is 1. Their ranks by attention and share of movement are printed too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from report import NOTHING, Report, describe_machine, load, options, publish, versions

from afm_ctr.cli.quiet_imports import load_beam, load_tensorflow
from afm_ctr.synthetic import PLANTED, make_logs

if TYPE_CHECKING:
    from afm_ctr.explain import Explanation

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "examples/criteo/schema.yaml"
CONFIG = ROOT / "examples/criteo/train.yaml"
NAMES = [f"{pair.first} x {pair.second}" for pair in PLANTED]


@dataclass(frozen=True)
class Found:
    """Result for one seed.

    Attributes:
        explanation: of the test split.
        auc: of the test split.
        bayes: AUC of the true click probabilities.
        seconds: from the logs to the explanation.
    """

    explanation: Explanation
    auc: float
    bayes: float | None
    seconds: float

    def ranks(self, name: str) -> tuple[int, int | None, int]:
        """The rank of a pair by effect, by attention, and by share of movement."""
        pair = next(pair for pair in self.explanation.pairs if pair.name == name)
        larger = sum(other.effect_share > pair.effect_share for other in self.explanation.pairs)
        return pair.rank, pair.attention_rank, 1 + larger

    def margin(self) -> float:
        """The smallest effect of a planted pair divided by the largest of another."""
        effects = {pair.name: pair.effect for pair in self.explanation.pairs}
        return min(effects[name] for name in NAMES) / max(v for name, v in effects.items() if name not in NAMES)

    def on_top(self) -> bool:
        return all(self.ranks(name)[0] <= len(NAMES) for name in NAMES)


def one_seed(seed: int, arguments: argparse.Namespace, folder: Path) -> Found:
    """Write, prepare, train, evaluate, explain."""
    from afm_ctr import distributed, explain, training
    from beam_jobs import prepare
    from beam_jobs.options import PrepareOptions

    start = time.monotonic()
    logs, data, run = folder / "logs.tsv", folder / "data", folder / "run"
    made = make_logs(logs, arguments.rows, seed=seed)
    prepare(PrepareOptions(SCHEMA, [str(logs)], str(data), split="tail:0.1/0.1"))
    sizes = [f"batch_size={arguments.batch}", f"epochs={arguments.epochs}", f"seed={seed}"]
    config = training.TrainConfig.load(arguments.config, [*sizes, *arguments.set])
    world = distributed.init()
    training.train(data, run, config, world, progress="none")
    auc = training.evaluate(data, "test", run, world)["auc"]
    explanation = explain.explain(run, data)
    if explanation.effect_of is None:
        sys.exit(f"benchmark: model {explanation.model!r} tells no effects of its pairs")
    return Found(explanation, auc, made.bayes_auc, time.monotonic() - start)


def table_of(found: dict[int, Found], arguments: argparse.Namespace) -> Report:
    model = next(iter(found.values())).explanation.model
    columns = ["seed", *NAMES, "smallest / next", "rank correlation", "weighted", "top 10 in common", "test AUC"]
    columns.append("best possible")
    report = Report(
        f"{model}: ranks of the planted pairs among {len(next(iter(found.values())).explanation.pairs)}, by effect / "
        f"attention / share of movement; {arguments.rows:,} rows",
        columns,
    )
    for seed, one in found.items():
        places = ["/".join(NOTHING if rank is None else str(rank) for rank in one.ranks(name)) for name in NAMES]
        agreement = one.explanation.agreement
        agrees = [NOTHING, NOTHING, NOTHING]
        if agreement is not None and agreement.correlation is not None and agreement.weighted is not None:
            correlations = (f"{value:+.3f}" for value in (agreement.correlation, agreement.weighted))
            agrees = [*correlations, f"{agreement.common} of {agreement.top}"]
        bayes = NOTHING if one.bayes is None else f"{one.bayes:.4f}"
        report.rows.append([str(seed), *places, f"{one.margin():.2f}", *agrees, f"{one.auc:.4f}", bayes])
    good = sum(one.on_top() for one in found.values())
    report.notes = [
        f"The planted pairs are the first {len(NAMES)} by effect for {good} of {len(found)} seeds.",
        "Smallest / next: the smallest effect of a planted pair over the largest effect of any other.",
        "Rank correlation: Spearman's, of effect and attention over all pairs; weighted: attention times the length "
        "of the pair's product. Best possible: AUC of the law that the clicks were drawn from.",
    ]
    return report


def main() -> None:
    parser = options(__doc__, seeds=[0, 1, 2, 3, 4], epochs=3, batch=128)
    parser.add_argument("--rows", type=int, default=60_000, help="lines of a log; a tenth of them is the test split")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--set", action="append", default=[], help="key.path=value, over the config; may be repeated")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.rows, arguments.epochs = arguments.seeds[:1], 4_000, 1
    load_beam([])
    load_tensorflow()
    found: dict[int, Found] = {}
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(prefix="afm-planted-") as folder:
            found[seed] = one_seed(seed, arguments, Path(folder))
        ranks = ", ".join(f"{name} {found[seed].ranks(name)[0]}" for name in NAMES)
        print(f"seed {seed}: {ranks} ({found[seed].seconds:.0f} s)", file=sys.stderr, flush=True)
    facts = [
        describe_machine(),
        versions("tensorflow", "keras", "apache-beam"),
        f"batch {arguments.batch}, {arguments.epochs} epochs; "
        f"{statistics.median(one.seconds for one in found.values()):.0f} s a seed, load {load()}",
    ]
    publish([table_of(found, arguments)], arguments.output, facts)
    sys.exit(not (arguments.quick or all(one.on_top() for one in found.values())))


if __name__ == "__main__":
    main()
