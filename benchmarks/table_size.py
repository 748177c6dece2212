"""Does a step cost more with a larger table? Whole steps on tables of several sizes, touching equally many rows.

    .venv/bin/python benchmarks/table_size.py                       # 100k, 1M and 10M rows, every optimizer
    .venv/bin/python benchmarks/table_size.py --optimizers adam --rounds 15

All sizes get the same batches except for the ids: those of the smallest table are spread over the larger ones, each
on its own row, so that a batch touches the same number of rows everywhere (asserted), only further apart. The sizes
take turns within every round, and a ratio is of two turns of the same round. One process, all its cores.
"""

from __future__ import annotations

import gc
import resource
import statistics
import sys

import numpy as np
from report import Report, describe_machine, load, options, publish, versions
from step_pieces import Batch, as_batch, distinct_rows, make_model, seconds, training_steps, zipf_ids

from afm_ctr import native, optimizers

BATCHES = 10
AIM = 1.3


def spread_batches(sizes: list[int], slots: int, batch: int) -> dict[int, list[Batch]]:
    """By size of table: the batches of the smallest, each id moved to its own row of the larger table."""
    rng = np.random.default_rng(0)
    small = min(sizes)
    ids = [zipf_ids(rng, slots, small, batch) for _ in range(BATCHES)]
    labels = [rng.integers(0, 2, batch) for _ in range(BATCHES)]
    batches = {}
    for size in sizes:
        share = size // small  # id i goes to one of the rows (i - 1) * share + 1 ... i * share
        row = np.arange(small) * share + 1 + rng.integers(0, share, small)
        batches[size] = [as_batch(row[i - 1], y) for i, y in zip(ids, labels, strict=True)]
    for same in zip(*batches.values(), strict=True):
        counts = {distinct_rows(each) for each in same}
        assert len(counts) == 1, f"the sizes touch different numbers of rows: {counts}"
    return batches


def main() -> None:
    parser = options(__doc__, slots=39, batch=4096, k=16, t=16, rounds=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000], help="rows")
    parser.add_argument("--optimizers", nargs="+", choices=optimizers.names(), default=optimizers.names())
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.slots, arguments.batch, arguments.rounds = [2000, 20_000], 5, 256, 2
    sizes = sorted(arguments.sizes)
    if any(size % sizes[0] for size in sizes):
        parser.error("every size is a multiple of the smallest")
    before = load()
    batches = spread_batches(sizes, arguments.slots, arguments.batch)
    models = {str(size): make_model(arguments.slots, size, arguments.k, arguments.t) for size in sizes}
    columns = ["optimizer", *(f"{size:,} rows, ms" for size in sizes)]
    columns += [f"{size:,} / {sizes[0]:,}" for size in sizes[1:]] + ["lowest – highest"]
    touched = int(np.median([distinct_rows(batch) for batch in batches[sizes[0]]]))
    title = f"whole step by rows of the table, {arguments.slots} slots, batch {arguments.batch}, k={arguments.k}, "
    report, worst = Report(title + f"t={arguments.t}, {touched:,} distinct rows a step in each", columns), 0.0
    for name in arguments.optimizers:
        steps = {str(size): training_steps(models[str(size)], name, batches[size]) for size in sizes}
        taken = seconds(steps, arguments.rounds)
        smallest = taken[str(sizes[0])]
        ratios = [[a / b for a, b in zip(taken[str(size)], smallest, strict=True)] for size in sizes[1:]]
        row = [name, *(f"{1e3 * statistics.median(taken[str(size)]):.1f}" for size in sizes)]
        row += [f"{statistics.median(each):.2f}" for each in ratios]
        report.rows.append([*row, f"{min(ratios[-1]):.2f} – {max(ratios[-1]):.2f}" if ratios else ""])
        worst = max(worst, *(statistics.median(each) for each in ratios)) if ratios else worst
        del steps
        gc.collect()  # the slots of an optimizer are as large as the table
        print(f"{name}: done, load average {load()}", file=sys.stderr, flush=True)
    met = worst <= AIM
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    report.notes.append(f"Aim: no ratio above {AIM}: {'met' if met else f'NOT met, {worst:.2f}'}.")
    report.notes.append(f"Peak of the process, which holds all {len(sizes)} tables: {peak:.1f} GB.")
    facts = [
        f"{describe_machine()}, load average {before} before, {load()} after",
        versions("tensorflow", "keras") + f"; pooling: {native.describe()}",
        f"medians of {arguments.rounds} rounds, the sizes taking turns",
    ]
    publish([report], arguments.output, facts)
    sys.exit(0 if met or arguments.quick else 1)


if __name__ == "__main__":
    main()
