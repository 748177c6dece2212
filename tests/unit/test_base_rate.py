"""The bias of a fresh model, from the labels of the train split."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from afm_ctr.models import CTRModel
from afm_ctr.records import Manifest
from afm_ctr.schema.formats import NegativeSampling
from afm_ctr.training.base_rate import LabelSums, initial_bias, label_sums
from afm_ctr.training.evaluation import new_evaluation
from tests import prepared
from tests.unit.fake_world import FakeWorld

ROWS = 100  # three shards of 40 rows, in blocks of 8


class Ranks(FakeWorld):
    """A rank that hears what the others have said before it."""

    def __init__(self, rank: int, size: int, said: list[Any]) -> None:
        super().__init__(rank, size)
        self.said = said

    def allgather_object(self, obj: Any) -> list[Any]:
        self.said.append(obj)
        return list(self.said)


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write(tmp_path_factory.mktemp("data"), {"train": ROWS}, weights=_weights())


def _weights() -> np.ndarray:
    """Of such different sizes that a sum rounds differently in another order; some rows do not count."""
    rng = np.random.default_rng(8)
    weights = (10.0 ** rng.uniform(-3, 5, ROWS)).astype(np.float32)
    weights[::9] = 0
    return weights


def model(loss: str, kind: str, **options: Any) -> CTRModel:
    return CTRModel("lr", {}, 10, 2, [(0, 1)], loss=loss, label_kind=kind, **options)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sums_of_records_do_not_depend_on_the_number_of_ranks(data: Path, size: int) -> None:
    said: list[Any] = []
    for rank in range(size):
        found = label_sums(data, Manifest.load(data), "train", prepared.FIELDS, Ranks(rank, size, said), silent)
    weights, labels = _weights().astype(float), prepared.rows_of("train", ROWS)["labels"]
    alone = label_sums(data, Manifest.load(data), "train", prepared.FIELDS, FakeWorld(0, 1), silent)
    assert found == alone
    assert found is not None
    assert found.weight == pytest.approx(math.fsum(weights), rel=1e-15)
    assert found.labels == pytest.approx(math.fsum(weights * labels), rel=1e-15)


def test_a_manifest_that_holds_the_sums_is_believed(data: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(data)
    shards = [shard.model_copy(update={"label_sums": (10.0, 2.0 + n)}) for n, shard in enumerate(manifest.shards)]
    found = label_sums(
        tmp_path, manifest.model_copy(update={"shards": shards}), "train", 4, FakeWorld(0, 1), pytest.fail
    )
    assert found == LabelSums(30.0, 9.0)


def test_records_that_cannot_be_read_leave_it_to_the_reader(tmp_path: Path) -> None:
    data = prepared.write(tmp_path, {"train": 20})
    shard = data / "attempt/train/part-00000.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-7] + b"damaged")
    assert label_sums(data, Manifest.load(data), "train", prepared.FIELDS, FakeWorld(0, 1), silent) is None


def test_a_logit_or_a_mean_by_the_loss() -> None:
    sums = LabelSums(8.0, 2.0)
    assert initial_bias(model("log", "binary"), sums) == pytest.approx(math.log(1 / 3), rel=1e-15)
    assert initial_bias(model("squared", "binary"), sums) == -0.5
    assert initial_bias(model("squared", "real"), LabelSums(8.0, -20.0)) == -2.5


def test_thinned_negatives_are_corrected_once() -> None:
    """The model's offset is added where predictions leave the training: the bias is that of the thinned rows."""
    thinned = model("log", "binary", bias_offset=math.log(0.1))
    assert initial_bias(thinned, LabelSums(4.0, 2.0)) == 0.0


@pytest.mark.parametrize(
    ("split", "apply", "corrected"),
    [("train", "already", True), ("test", "already", True), ("train", "here", True), ("test", "here", False)],
)
def test_the_constant_is_corrected_where_negatives_lack(split: str, apply: Any, corrected: bool) -> None:
    """`apply: here` thins only the split "train"; a log that was thinned before lacks them in every split."""
    sampling = NegativeSampling(rate=0.1, correct="logit", apply=apply)
    reader = SimpleNamespace(schema=SimpleNamespace(spec=SimpleNamespace(negative_sampling=sampling)), split=split)
    evaluation = new_evaluation(model("log", "binary", bias_offset=math.log(0.1)), reader)  # type: ignore[arg-type]
    evaluation.update([0.0, 1.0], [0.0, 0.0])
    odds = 0.1 if corrected else 1.0
    expected = -0.5 * math.log(odds / (1 + odds)) - 0.5 * math.log(1 / (1 + odds))
    assert evaluation.result()["constant_log_loss"] == pytest.approx(expected, rel=1e-12)


def test_the_constant_of_a_whole_log_is_not_corrected() -> None:
    reader = SimpleNamespace(schema=SimpleNamespace(spec=SimpleNamespace(negative_sampling=None)), split="train")
    evaluation = new_evaluation(model("log", "binary", bias_offset=math.log(0.1)), reader)  # type: ignore[arg-type]
    assert evaluation.offset == 0.0


def test_a_rare_click_has_a_bias_too() -> None:
    found = initial_bias(model("log", "binary"), LabelSums(1e9, 1.0))
    assert found == pytest.approx(math.log(1e-9), rel=1e-9)


@pytest.mark.parametrize("sums", [LabelSums(5.0, 0.0), LabelSums(5.0, 5.0), LabelSums(0.0, 0.0)])
def test_one_class_or_no_weight_gives_no_logit(sums: LabelSums) -> None:
    assert initial_bias(model("log", "binary"), sums) is None
