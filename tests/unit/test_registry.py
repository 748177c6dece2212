"""Models from outside: how they are found, and what a mistake in one looks like."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import optimizers
from afm_ctr.distributed import SingleWorld, wrap_optimizer
from afm_ctr.errors import UserError
from afm_ctr.models import CTRModel, Interaction, InteractionOptions, interaction_class, names, register, registry
from afm_ctr.models.afm import AFM


class LateOptions(InteractionOptions):
    units: int = 2


class Late(Interaction):
    """A model as an outsider may write it: its weights are made at its first call."""

    Options = LateOptions

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(shape=(self.options.factors, self.options.units), name="kernel")

    def call(self, inputs: Any, training: bool = False, rows: tf.Tensor | None = None) -> tf.Tensor:
        hidden = tf.matmul(tf.reduce_sum(inputs.vectors, axis=1), self.kernel.value)
        return tf.reduce_sum(inputs.linear, axis=1) + tf.reduce_sum(tf.nn.relu(hidden), axis=1)


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    found: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: [e for e in found if e.group == group])
    monkeypatch.setattr(registry, "_registered", {})
    return found


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "afm_ctr.models")


def test_ours_are_there_without_an_installed_package(entries: list[EntryPoint]) -> None:
    assert names() == ["afm", "deep_afm", "fm", "lr"]
    assert interaction_class("afm") is AFM


def test_our_package_declares_its_models() -> None:
    from importlib.metadata import entry_points

    assert {"afm", "deep_afm", "fm", "lr"} <= {e.name for e in entry_points(group="afm_ctr.models")}


def test_an_entry_point_is_a_model(entries: list[EntryPoint]) -> None:
    entries.append(entry("late", f"{__name__}:Late"))
    entries.append(entry("late", f"{__name__}:Late"))
    assert "late" in names()
    model = CTRModel("late", {"factors": 3}, 5, 2, [(0, 1)])
    assert model.interaction.kernel.path == "late/kernel"
    optimizer = wrap_optimizer(optimizers.build("adam", learning_rate=0.1), SingleWorld())
    model.compile(optimizer=optimizer, jit_compile=False)
    rows = {
        "feature_ids": np.array([[1, 2], [3, 0], [4, 2], [0, 0]] * 4),
        "feature_vals": np.ones((16, 2), np.float32),
        "label": np.array([1, 0, 1, 0] * 4, np.float32),
        "weight": np.ones(16, np.float32),
    }
    history = model.fit(tf.data.Dataset.from_tensor_slices(rows).batch(8), epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]
    again = CTRModel.from_config(model.get_config())
    assert type(again.interaction) is Late and again.options == model.options


def test_mistakes_are_one_line(entries: list[EntryPoint]) -> None:
    with pytest.raises(UserError, match="no model 'deepfm'; there are: afm, deep_afm, fm, lr"):
        interaction_class("deepfm")
    with pytest.raises(UserError, match=r"model 'afm': atention: unknown key .did you mean 'attention'"):
        CTRModel("afm", {"atention": 4}, 5, 2, [(0, 1)])
    with pytest.raises(UserError, match="model 'afm': attention_dropout: 1: must be less than 1"):
        CTRModel("afm", {"attention_dropout": 1}, 5, 2, [(0, 1)])
    with pytest.raises(UserError, match="model 'lr': factors: "):
        CTRModel("lr", {"factors": 4}, 5, 2, [(0, 1)])
    entries.append(entry("broken", "no.such.module:Model"))
    entries.append(entry("number", "math:pi"))
    entries += [entry("twice", "one:A"), entry("twice", "two:A")]
    with pytest.raises(UserError, match=r"cannot load no\.such\.module:Model"):
        interaction_class("broken")
    with pytest.raises(UserError, match="is not a subclass of"):
        interaction_class("number")
    with pytest.raises(UserError, match="claimed by several packages"):
        interaction_class("twice")


def test_registered_in_this_process(entries: list[EntryPoint]) -> None:
    register("late", Late)
    assert interaction_class("late") is Late and "late" in names()
    for name in ("late", "afm"):
        with pytest.raises(UserError, match="already"):
            register(name, Late)
