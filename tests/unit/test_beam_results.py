"""What passes hand on: the same bytes back, and the same sum in any order and grouping, in a pipeline or by hand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from afm_ctr.analysis import Analysis, ChunkAnalysis
from afm_ctr.errors import UserError
from afm_ctr.schema import FeatureSchema, resolve
from afm_ctr.schema.analysis_results import NumberPart
from afm_ctr.schema.moments import Moments
from afm_ctr.statistics import Collector
from beam_jobs import files
from beam_jobs.passes import Work
from beam_jobs.results import (
    Analysed,
    AnalysedChunks,
    Converted,
    ConvertedChunks,
    Counted,
    CountedPieces,
    Found,
    Join,
    PackedCoder,
)
from beam_jobs.runners import Engine
from beam_jobs.sources import Chunk, LogFile, Unit

SCHEMA = resolve(
    FeatureSchema.model_validate(
        {
            "name": "t",
            "format": {"kind": "delimited"},
            "fields": [
                {"name": "a", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 50}},
                {"name": "n", "kind": "numeric", "encoding": {"kind": "value"}},
            ],
        }
    ),
    Analysis.empty(),
)
CHUNKS = 12


def counted(number: int) -> CountedPieces:
    return CountedPieces([Counted(number, 10 * number, number % 2 == 0)])


def analysed(number: int) -> AnalysedChunks:
    pick = np.random.default_rng(number)
    part = NumberPart(
        Moments.of(0.1 * number + pick.random(5)), pick.integers(0, 2**63, 5).astype(np.uint64), pick.random(5)
    )
    counts = f"counts/{number}" if number % 3 else None
    return AnalysedChunks([Analysed(number, 5, 2, {"bad": number}, counts, 4)], [ChunkAnalysis({}, {"n": part})])


def converted(number: int) -> ConvertedChunks:
    collector = Collector(SCHEMA, 60, 60)
    ids = np.random.default_rng(number).integers(0, 50, (5, 2))
    labels = np.arange(5) % 2.0
    collector.add(ids, labels)
    cells = {name: np.array([b"7"] * 5, object) for name in SCHEMA.raw_columns}
    collector.add_sample(5 * number + np.arange(5), cells, ids, labels)
    shard = {"split": "train", "file": f"train/part-{number:05d}.tfrecord", "rows": 5, "bytes": 99}
    chunk = Converted(number, [shard], {"bad_number": 1}, 2, {"a": [1, 2]}, [{"a": "é\n", "n": "7"}])
    return ConvertedChunks([chunk], collector.partial())


KINDS = {CountedPieces: counted, AnalysedChunks: analysed, ConvertedChunks: converted}


def seen(found: Found[Any]) -> Any:
    """All that is asked of findings."""
    facts: Any = None
    if isinstance(found, AnalysedChunks):
        numbers = Analysis.merge(found.numbers).numbers["n"]
        facts = numbers.count, numbers.mean, numbers.std, numbers.sample.tolist()
    elif isinstance(found, ConvertedChunks):
        facts = found.statistics.finish(SCHEMA, "train").model_dump()
    return found.in_order(), facts


@pytest.mark.parametrize("kind", KINDS)
@given(order=st.permutations(range(CHUNKS)), cuts=st.sets(st.integers(0, CHUNKS), max_size=5))
def test_any_grouping_gives_the_same(kind: type[Found[Any]], order: Sequence[int], cuts: set[int]) -> None:
    join, make = Join(kind), KINDS[kind]
    bounds = sorted(cuts | {0, CHUNKS})
    totals: list[Any] = [join.create_accumulator()]
    coder = join.get_accumulator_coder()
    for start, end in itertools.pairwise(bounds):
        total = join.create_accumulator()
        for number in order[start:end]:
            part = make(number)
            before = part.to_bytes()
            total = join.add_input(total, part)
            assert part.to_bytes() == before, "a part is not changed"
        totals.append(coder.decode(coder.encode(join.compact(total))) if start % 2 else total)
    whole = join.create_accumulator()
    for number in range(CHUNKS):
        whole = join.add_input(whole, make(number))
    found = join.extract_output(join.merge_accumulators(totals))
    assert seen(kind.from_bytes(found)) == seen(whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_joined_in_a_pipeline(kind: type[Found[Any]]) -> None:
    assert isinstance(beam.coders.registry.get_coder(kind), PackedCoder)
    expected = [chunk for number in range(CHUNKS) for chunk in KINDS[kind](number).chunks]
    with Engine().pipeline() as pipeline:
        parts = pipeline | beam.Create(range(CHUNKS)) | beam.Map(KINDS[kind]).with_output_types(kind)
        found = parts | beam.Reshuffle() | beam.CombineGlobally(Join(kind)).without_defaults()
        assert (parts.element_type, found.element_type) == (kind, bytes)
        assert_that(found | beam.Map(lambda found: kind.from_bytes(found).in_order()), equal_to([expected]))


def test_units_are_the_same_behind_their_bytes() -> None:
    log = LogFile("a.csv", 9, "plain", b"a,\xff", b"1,2", 100, (1, 2), "train", "called")
    unit = Unit((Chunk(0, log, 0, 5), Chunk(1, log, 5, 9, 3, 2, 1, True, 1)))
    assert Unit.from_bytes(unit.to_bytes()) == unit


class Task:
    """Counts; the piece 3 cannot be read."""

    finds = CountedPieces

    def setup(self) -> None:
        pass

    def run(self, unit: Sequence[Chunk]) -> Any:
        for piece in unit:
            if piece.number == 3:
                raise UserError("piece 3 cannot be read")
            yield CountedPieces([Counted(piece.number, 7)])


def test_no_thread_sends_half_of_an_element(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam's timed sending of what is encoded, all the time, of elements that take their time to be packed."""
    monkeypatch.setattr(worker_handlers, "DATA_BUFFER_TIME_LIMIT_MS", 1)
    threads = PipelineOptions(["--direct_num_workers=2", "--direct_running_mode=multi_threading"])
    with TestPipeline(runner=FnApiRunner(), options=threads) as pipeline:
        parts = pipeline | beam.Create(range(40)) | beam.Map(slow).with_output_types(Slow)
        found = parts | beam.CombineGlobally(Join(Slow)).without_defaults()
        assert_that(found | beam.Map(lambda found: len(Slow.from_bytes(found).chunks)), equal_to([40]))


class Slow(CountedPieces):
    def to_bytes(self) -> bytes:
        time.sleep(0.01)
        return super().to_bytes()


def slow(number: int) -> Slow:
    return Slow([Counted(number, 1)])


def test_what_a_worker_cannot_do_is_a_dead_letter(tmp_path: Any) -> None:
    units = [Unit((Chunk(number, LogFile("a.csv", 9, "plain", None, None), 0, 5),)).to_bytes() for number in range(5)]
    with Engine().pipeline() as pipeline:
        done = (
            pipeline
            | beam.Create(units)
            | beam.ParDo(Work(Task(), str(tmp_path))).with_outputs("failed", main="found")
        )
        assert done.found.element_type == CountedPieces
        numbers = done.found | beam.Map(lambda found: found.chunks[0].number)
        assert_that(numbers, equal_to([0, 1, 2, 4]), label="found")
        assert_that(done.failed, equal_to([("failed", b"piece 3 cannot be read")]), label="failed")
    assert sorted(files.names(str(tmp_path))) == [f"0000000{i}-7" for i in (0, 1, 2, 4)]
