"""Gradient exchange between several hosts: bytes on the wire and time of each form, at several speeds.

    sudo .venv/bin/python benchmarks/hosts.py                       # three hosts, 1 and 10 Gbit/s, a few minutes
    sudo .venv/bin/python benchmarks/hosts.py --links 1 2.5 10/0.2 --ids 1000000 --rounds 9
    sudo .venv/bin/python benchmarks/hosts.py --ids 50000000 --forms sharded     # a table that no host holds whole

The hosts are network namespaces of this machine with an sshd in each (see ``namespaces.py``), and ``horovodrun``
starts one rank on each by ssh, as on a cluster. A link is a speed in Gbit/s, and after a slash the one-way delay in
milliseconds; "free" is not limited. All ranks compute on this machine's cores, so the time of a whole step grows with
the number of ranks; compare the exchange.

raw     what a model does that gathers rows from its table and passes the gradient to ``hvd.allreduce``: Horovod's own
        sparse path, two allgathers of every row of the batch, as often as it occurs; merged where they arrive
gather  this package's: each distinct row once, gathered and merged
reduce  this package's: the whole table, summed as a dense tensor
sharded a table whose rows are sharded over the ranks: ids to their owners, rows back, gradient rows there. Its time
        includes what the others do before and after: merging the ids, and reading the rows from the table

Bytes are counted by the hosts' interfaces, including the headers of TCP and IP. Needs root, iproute2 and
openssh-server; the machine's own network is not touched, and everything is removed at the end, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from namespaces import Lab, LabError, Link
from report import Report, describe_machine, load, options, publish, versions
from wire import attained

from afm_ctr.distributed import Traffic
from afm_ctr.training.plan import Cluster, Cost, Table, plan

WORKER = Path(__file__).with_name("hosts_worker.py")
LINKS = ["1", "10", "10/0.2"]
FORMS = ("raw", "gather", "reduce", "sharded")
LONGEST = 1800


def parse_link(text: str) -> Link:
    speed, _, delay = text.partition("/")
    try:
        rate = None if speed == "free" else round(float(speed) * 1e9)
        late = float(delay or 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: a speed in Gbit/s or free, and /milliseconds") from None
    if (rate is not None and rate <= 0) or late < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: speed and delay are not negative")
    name = "not limited" if rate is None else f"{speed} Gbit/s"
    return Link(name + (f", {delay} ms" if late else ""), rate, late)


def run(lab: Lab, links: list[Link], task: dict[str, Any]) -> dict[str, Any]:
    """Start the ranks, shape the links when rank 0 requests it, and return the results."""
    (lab.folder / "task.json").write_text(json.dumps(task))
    launcher = str(Path(sys.executable).with_name("horovodrun"))
    hosts = ",".join(f"{name}:1" for name in lab.names)
    job = ["--gloo", "-np", str(len(lab.addresses)), "-H", hosts, "--network-interfaces", "eth0", "--disable-cache"]
    log = lab.folder / "job.log"
    with log.open("wb") as sink:
        command = [launcher, *job, sys.executable, str(WORKER), str(lab.folder)]
        process = lab.popen(0, command, stdout=sink, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + LONGEST
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise LabError(f"the ranks have not ended after {LONGEST} seconds")
            for file in lab.folder.glob("want-*"):
                _, number, link = file.name.split("-")
                file.unlink()
                lab.shape(links[int(link)])
                (lab.folder / f"have-{number}").touch()
            time.sleep(0.02)
    if process.returncode:
        lines = log.read_text(errors="replace").splitlines()
        said = [line for line in lines if line.startswith("[")] or lines  # the ranks' own lines before the launcher's
        raise LabError(f"horovodrun ended with {process.returncode}\n" + "\n".join(said[-25:]))
    return json.loads((lab.folder / "found.json").read_text())


def median(found: list[dict[str, Any]], name: str, **key: Any) -> float:
    return statistics.median(entry[name] for entry in found if all(entry[k] == v for k, v in key.items()))


def planned(found: dict[str, Any], task: dict[str, Any], ids: int, ranks: int, rate: float) -> dict[Traffic, Cost]:
    """The estimates of ``afm-ctr plan`` for each form, with links of ``rate`` bit/s."""
    width, slots = task["k"] + 1, task["slots"]
    table = Table(
        rows=ids + 1,
        width=width,
        slot_numbers=2 * width,
        marks=False,
        local_batch=task["batch"],
        slots=slots,
        pairs=slots * (slots - 1) // 2,
        touched=found["facts"][str(ids)]["touched"],
    )
    return plan(table, Cluster(ranks, 1, rate / 1e9, memory=0)).costs


def bytes_table(found: dict[str, Any], task: dict[str, Any], ranks: int) -> tuple[Report, bool]:
    forms = task["forms"]
    compared = {"gather", "raw"} <= set(forms)
    columns = ["ids of the table", "rows read", "distinct", *(f"{form}, MB" for form in forms), "planned"]
    columns += ["gather / raw"] if compared else []
    title = (
        f"megabytes that a host sends in a step, {ranks} hosts, {task['slots']} slots, batch {task['batch']} a rank"
    )
    report, met = Report(title, columns), True
    for ids in task["ids"]:
        sent = {form: median(found["found"], "sent", ids=ids, form=form, kind="exchange") for form in forms}
        facts = found["facts"][str(ids)]
        row = [f"{ids:,}", f"{facts['read']:,}", f"{facts['touched']:,}", *(f"{sent[form]:.2f}" for form in forms)]
        costs = planned(found, task, ids, ranks, 1e9).values()
        row.append(" / ".join(f"{cost.sent / 1e6:.2f}" for cost in costs))
        if compared:
            share = sent["gather"] / sent["raw"]
            met &= share <= 1 / 3
            row.append(f"{share:.2f}")
        report.rows.append(row)
    report.notes.append("Planned: what `afm-ctr plan` says of gather, reduce and sharded, without headers.")
    if compared:
        report.notes.append(f"Aim: gather sends at most a third of raw's bytes: {'met' if met else 'NOT met'}.")
    return report, met


def time_table(
    found: dict[str, Any], task: dict[str, Any], links: list[Link], speeds: list[float], ranks: int
) -> Report:
    forms = task["forms"]
    columns = ["link", "attained, Gbit/s", "ids", *(f"{form}, ms" for form in forms), "fastest", "planned"]
    columns += [f"step, {form}, ms" for form in forms]
    report = Report("exchange of a step, and the whole step, by link: medians of the rounds", columns)
    for (number, link), ids in itertools.product(enumerate(links), task["ids"]):
        key = {"link": number, "ids": ids}
        taken = {f: 1e3 * median(found["found"], "seconds", form=f, kind="exchange", **key) for f in forms}
        whole = {f: 1e3 * median(found["found"], "seconds", form=f, kind="whole", **key) for f in forms}
        best = min(taken, key=lambda form: taken[form])
        row = [
            link.name,
            f"{speeds[number]:.1f}",
            f"{ids:,}",
            *(f"{taken[form]:.0f}" for form in forms),
            best,
        ]
        costs = planned(found, task, ids, ranks, link.rate).values() if link.rate else ()
        row.append(" / ".join(f"{1e3 * cost.exchange_seconds:.1f}" for cost in costs))
        report.rows.append([*row, *(f"{whole[form]:.0f}" for form in forms)])
    report.notes.append("Planned: what `afm-ctr plan` says of the exchange of gather, reduce and sharded, ms.")
    report.notes += crossings(found, task, links)
    return report


def crossings(found: dict[str, Any], task: dict[str, Any], links: list[Link]) -> list[str]:
    """Between two measured speeds a form's time has a constant part and a part proportional to the inverse speed."""
    measured = sorted((link.rate, number) for number, link in enumerate(links) if link.rate)
    notes = []
    for ids, (one, other) in itertools.product(task["ids"], itertools.combinations(task["forms"], 2)):
        for (slow, a), (fast, b) in itertools.pairwise(measured):
            gaps = []
            for number in (a, b):
                at = [
                    median(found["found"], "seconds", link=number, ids=ids, form=form, kind="exchange")
                    for form in (one, other)
                ]
                gaps.append(at[0] - at[1])
            if gaps[0] * gaps[1] < 0:
                inverse = (gaps[0] / fast - gaps[1] / slow) / (gaps[0] - gaps[1])
                below, above = (one, other) if gaps[0] < 0 else (other, one)
                notes.append(
                    f"{ids:,} ids: {below} beats {above} below about {1e-9 / inverse:.1f} Gbit/s, not above."
                )
    return notes or ["No form overtakes another between the limited speeds measured."]


def main() -> None:
    parser = options(__doc__, hosts=3, ids=[10_000, 100_000, 1_000_000], slots=39, k=16, t=16, rounds=3)
    parser.add_argument("--links", type=parse_link, nargs="+", default=[parse_link(text) for text in LINKS])
    parser.add_argument("--batch", type=int, default=4096, help="of a rank")
    parser.add_argument("--steps", type=int, default=3, help="in a turn")
    parser.add_argument(
        "--forms", choices=FORMS, nargs="+", default=list(FORMS), help="all but sharded: whole tables"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.ids, arguments.slots, arguments.batch, arguments.rounds, arguments.steps = [2000], 5, 256, 1, 2
    task = {
        name: getattr(arguments, name) for name in ("ids", "slots", "batch", "k", "t", "rounds", "steps", "forms")
    }
    links, before = arguments.links, load()
    try:
        with Lab(arguments.hosts) as lab:
            speeds = []
            for link in links:
                lab.shape(link)
                speeds.append(attained(lab, 8 if arguments.quick else 128))
            found = run(lab, links, task | {"links": len(links)})
            netem = lab.netem
    except LabError as error:
        sys.exit(f"benchmark: {error}")
    except KeyboardInterrupt:
        print("benchmark: stopped; the namespaces are removed", file=sys.stderr)
        sys.exit(130)
    wire, met = bytes_table(found, task, arguments.hosts)
    facts = [
        f"{describe_machine()}, load average {before} before, {load()} after",
        versions("tensorflow", "keras", "horovod"),
        f"{arguments.rounds} rounds of {arguments.steps} steps, forms and links taking turns; Gloo over TCP",
    ]
    if any(link.delay_ms for link in links):
        relay = "by a switch in user space (this kernel has no netem), which limits the speed attained"
        facts.append(f"delay {'by netem' if netem else relay}")
    publish([wire, time_table(found, task, links, speeds, arguments.hosts)], arguments.output, facts)
    sys.exit(0 if met or arguments.quick else 1)


if __name__ == "__main__":
    main()
