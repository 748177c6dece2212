"""How a trace becomes a table: which part an operation belongs to, and who gets the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from afm_ctr.training.profiler import MARK, PARTS, Span, divide, part_of, spans_of


@pytest.mark.parametrize(
    ("event", "part"),
    [
        ("IteratorGetNextOp::DoCompute", "input"),
        ("IteratorGetNextAsOptionalOp::DoCompute", "input"),
        ("StatefulPartitionedCall/train_step/ctr/merge/Unique:Unique", "merge"),
        ("gradient_tape/train_step/ctr_1/lookup_2/mul/Mul:Mul", "lookup"),
        ("train_step/exchange/HorovodAllgather:HorovodAllgather", "exchange"),
        ("train_step/cond/then/_3/train_step/cond/optimizer/adam/Gather:ResourceGather", "optimizer"),
        ("train_step/AssignVariableOp:AssignVariableOp", "other"),
        ("PyFunc:PyFunc", None),  # of the input's threads
        ("Iterator::Root::Prefetch", None),
        ("ExecutorState::Process", None),
    ],
)
def test_the_part_of_an_event(event: str, part: str | None) -> None:
    assert part_of(event) == part


def test_the_parts_share_the_whole_time() -> None:
    spans = [
        Span(-5, 10, "input"),
        Span(10, 30, "merge"),
        Span(20, 30, "lookup"),  # beside the last
        Span(33, 50, "interaction"),
        Span(50, 52, "exchange"),
        Span(70, 80, "optimizer"),  # after a wait for the other ranks
        Span(95, 120, "input"),
        Span(120, 130, "merge"),  # of the next step: nothing has been exchanged yet
        Span(135, 140, "optimizer"),
    ]
    got = divide(reversed(spans), 0, 150)
    assert set(got) == set(PARTS) and sum(got.values()) == 150
    assert got == {
        "input": 10 + 25,
        "merge": 10 + 5 + 10,
        "lookup": 5,
        "interaction": 17,
        "exchange": 2 + 18,
        "optimizer": 10 + 5,
        "idle": 0,
        "other": 3 + 15 + 5 + 10,
    }
    on_gpu = divide(spans, 0, 150, "idle")
    assert on_gpu == {**got, "idle": got["other"], "other": 0}


def test_nothing_at_all_is_other() -> None:
    assert divide([], 5, 12) == {**dict.fromkeys(PARTS, 0), "other": 7}


def test_an_operation_within_another_takes_its_time(tmp_path: Path) -> None:
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    plane = space.planes.add(name="/host:CPU")
    events = [(MARK, 0, 100), ("train_step/exchange/A:A", 10, 80), ("train_step/merge/B:B", 20, 30), ("C:C", 0, 99)]
    for number, (name, _, _) in enumerate(events):
        plane.event_metadata[number].name = name
    line = plane.lines.add(timestamp_ns=1)
    for number, (_, begin, took) in enumerate(events):
        line.events.add(metadata_id=number, offset_ps=begin, duration_ps=took)
    trace = tmp_path / "host.xplane.pb"
    trace.write_bytes(space.SerializeToString())
    spans, begin, end, on_gpu = spans_of(trace)
    assert (begin, end, on_gpu) == (1000, 1100, False)
    assert [(s.begin - 1000, s.end - 1000, s.part) for s in sorted(spans) if s.end > s.begin] == [
        (10, 20, "exchange"),
        (20, 50, "merge"),
        (50, 90, "exchange"),
    ]
    trace.write_bytes(xplane_pb2.XSpace().SerializeToString())
    with pytest.raises(ValueError, match=MARK):
        spans_of(trace)


def test_on_a_gpu_its_own_times_count_and_of_the_host_the_wait_for_input(tmp_path: Path) -> None:
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    gpu, host = space.planes.add(name="/device:GPU:0"), space.planes.add(name="/host:CPU")
    gpu.stat_metadata[7].name = "tf_op"
    gpu.stat_metadata[8].name = "kernel_details"
    launched = [
        ("StatefulPartitionedCall/train_step/optimizer/adam/Mul:Mul", 40, 10),
        ("", 60, 5),
    ]  # the last: a copy
    for number, (operation, begin, took) in enumerate(launched):
        gpu.event_metadata[number].name = "kernel"
        line = gpu.lines.add(timestamp_ns=1)
        event = line.events.add(metadata_id=number, offset_ps=begin, duration_ps=took)
        event.stats.add(metadata_id=8, str_value="regs:16")
        event.stats.add(metadata_id=7, str_value=operation)
    events = [(MARK, 0, 100), ("IteratorGetNextOp::DoCompute", 0, 20), ("train_step/merge/B:B", 20, 70)]
    line = host.lines.add(timestamp_ns=1)
    for number, (name, begin, took) in enumerate(events):
        host.event_metadata[number].name = name
        line.events.add(metadata_id=number, offset_ps=begin, duration_ps=took)
    trace = tmp_path / "gpu.xplane.pb"
    trace.write_bytes(space.SerializeToString())
    spans, begin, end, on_gpu = spans_of(trace)
    assert on_gpu
    got = divide(spans, begin, end, "idle")
    assert {part: took for part, took in got.items() if took} == {
        "input": 20,
        "optimizer": 10,
        "other": 5,
        "idle": 65,
    }
