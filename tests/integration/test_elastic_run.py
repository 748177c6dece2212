"""A run that loses its ranks between two steps ends as the undisturbed one does; one rank that says it is elastic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr.distributed import SingleWorld
from afm_ctr.records import Reader
from afm_ctr.training import TrainConfig, load_model, train
from tests import prepared
from tests.unit.fake_world import FakeWorld


@pytest.mark.parametrize("epoch_and_step", [(0, 2), (1, 5)])
def test_what_a_commit_hands_over_is_the_whole_run(
    epoch_and_step: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepared.write(tmp_path / "data", {"train": 100, "valid": 50})
    settings = TrainConfig.load(
        None,
        ["model={name: fm, factors: 4}", "batch_size=16", "epochs=3", "optimizer={name: adam, warmup_steps: 12}"]
        + ["elastic.commit_steps=4", "checkpoint.every_steps=3", "early_stopping={patience: 2}", "tensorboard=false"],
    )
    whole = train(data, tmp_path / "whole", settings, SingleWorld(), progress="none")
    lost, read = [epoch_and_step], Reader.batch

    def batch(self: Reader, epoch: int, step: int, *columns: Any) -> dict[str, np.ndarray]:
        if self.split == "train" and (epoch, step) in lost:
            lost.clear()
            raise tf.errors.UnknownError(None, None, "HorovodAllreduce: Horovod has been shut down.")
        return read(self, epoch, step, *columns)

    monkeypatch.setattr(Reader, "batch", batch)
    world = FakeWorld(size=1, elastic=True)
    torn = train(data, tmp_path / "torn", settings, world, progress="none")
    assert world.resets == 1
    assert (torn.steps, torn.best, torn.ended) == (whole.steps, whole.best, whole.ended)
    histories = [
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("whole", "torn")
    ]
    for one in (*histories[0], *histories[1]):
        del one["seconds"], one["rows_per_second"]
    assert histories[0] == histories[1]
    for one, other in zip(*(load_model(tmp_path / name)[0].variables for name in ("whole", "torn")), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)
