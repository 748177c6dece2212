"""The training config: what it takes, what it refuses, and how it says so."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_ctr import optimizers
from afm_ctr.errors import UserError
from afm_ctr.models import interaction_class, parse_options
from afm_ctr.training.config import OptimizerConfig, TrainConfig
from afm_ctr.training.overrides import apply_overrides


def write(folder: Path, text: str) -> Path:
    path = folder / "train.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_and_round_trip(tmp_path: Path) -> None:
    config = TrainConfig.load(write(tmp_path, ""))
    assert config == TrainConfig()
    assert TrainConfig.load(write(tmp_path, config.to_yaml())) == config
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 4  # type: ignore[misc]


def test_options_of_model_and_optimizer_pass_through(tmp_path: Path) -> None:
    path = write(
        tmp_path, "model: {name: fm, factors: 8}\noptimizer: {name: adam, learning_rate: 1e-2, beta_1: 5e-1}\n"
    )
    config = TrainConfig.load(path)
    assert config.model.name == "fm"
    assert config.model.options == {"factors": 8}
    assert config.optimizer.learning_rate == 0.01
    assert config.optimizer.options == {"beta_1": 0.5}
    assert list(get_args(OptimizerConfig.model_fields["name"].annotation)) == optimizers.names()


def test_overrides_win_over_the_file_and_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {name: fm, factors: 8}\nepochs: 5\nvalidation: null\n")
    changes = ["model.factors=4", "validation.metric=log_loss", "row_l2.vectors=1e-5", "early_stopping={patience: 7}"]
    config = TrainConfig.load(path, [*changes, "checkpoint.keep=1"])
    assert config.model.options == {"factors": 4}
    assert config.epochs == 5
    assert config.validation is not None
    assert (config.validation.split, config.validation.metric, config.validation.direction) == (
        "valid",
        "log_loss",
        "min",
    )
    assert config.row_l2 == {"vectors": 1e-5}
    assert config.early_stopping is not None
    assert config.early_stopping.patience == 7
    assert config.checkpoint.keep == 1
    assert config.checkpoint.every_steps == 500
    assert TrainConfig.load(path, ["validation=null"]).validation is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epocs: 3", "epocs: unknown key (did you mean 'epochs'?)"),
        ("checkpoint: {evry_steps: 3}", "checkpoint.evry_steps: unknown key (did you mean 'every_steps'?)"),
        ("epochs: 0", "epochs: 0: must be greater than or equal to 1"),
        ("optimizer: {learning_rate: -1}", "optimizer.learning_rate: -1: "),
        ("optimizer: {learning_rate: .nan}", "optimizer.learning_rate: nan: "),
        ("loss: hinge", "loss: 'hinge': must be 'log' or 'squared'"),
        ("row_l2: {vectors: -1}", "row_l2.vectors: -1: "),
        ("row_l2: {vectors: much}", "row_l2.vectors: 'much': must be a valid number"),
        ("row_l2: much", "row_l2: 'much': must be a valid number or a mapping of keys"),
        ("row_l2: -0.5", "row_l2: -0.5: must be greater than or equal to 0"),
        ("validation: null\nearly_stopping: {}", "early_stopping needs `validation"),
        ("validation: null\nreduce_on_plateau: {}", "reduce_on_plateau needs `validation"),
        ("validation: {split: train}", "both 'train'"),
        ("loss: squared\nvalidation: {metric: log_loss}", "log_loss needs `loss: log`"),
        ("reduce_on_plateau: {min_learning_rate: 1}", "min_learning_rate is above"),
        ("reduce_on_plateau: {}\noptimizer: {decay: linear}", "both lower the learning rate: keep one"),
        (
            "optimizer: {name: adamm}",
            "optimizer.name: 'adamm': must be 'adagrad', 'adam', 'ftrl', 'rowwise_adagrad' or 'sgd' (did you",
        ),
        ("optimizer: {decay: exponential}", "optimizer.decay: 'exponential': must be 'linear' or 'cosine'"),
        ("epochs: 1\nepochs: 2", ":2:1: not valid YAML: the key 'epochs' is given twice"),
        ("epochs: [1", "not valid YAML"),
        ("seed: 1\nepochs: !!int x", ":2:9: not valid YAML: the value does not fit its type"),
        ("epochs: !!bool maybe", "not valid YAML: the value does not fit its type"),
        (f"epochs: {'1' * 5000}", "not valid YAML: the value does not fit its type"),
        ("- 1", "is a mapping of keys, not list"),
    ],
)
def test_a_fault_is_one_line_with_file_key_and_value(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        TrainConfig.load(path)
    message = str(caught.value)
    assert said in message
    assert message.startswith(str(path))
    assert "\n" not in message


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        TrainConfig.load(write(tmp_path, "epochs: 0\nseed: -1\nfoo: 1\n"))
    assert str(caught.value).count(";") == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimiser.learning_rate=1", "unknown key optimiser; did you mean optimizer?"),
        ("early_stopping.patiens=1", "unknown key early_stopping.patiens; did you mean early_stopping.patience?"),
        ("qqqq=1", "known keys: model, loss"),
        ("seed.x=1", "seed holds a value and has no key 'x'"),
        ("model.a.b=1", "model.a holds a value and has no key 'b'"),
        ("epochs", "write key.path=value"),
        ("=3", "write key.path=value"),
        ("epochs=[1", "--set epochs=[1: not valid YAML"),
    ],
)
def test_an_override_that_leads_nowhere(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        TrainConfig.load(None, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("epochs: 2", ["seed=1", "batch_size=-1"], r"^--set batch_size=-1: batch_size: "),
        ("epochs: 2", ["seed=-1", "batch_size=-1"], r"^--set seed=-1 --set batch_size=-1: batch_size: .*; seed: "),
        ("early_stopping: {}", ["validation=null", "seed=1"], r"^--set validation=null: early_stopping needs "),
        ("epochs: 0", ["batch_size=-1"], r"^\S*/train.yaml: epochs: "),
        ("epochs: 0", ["epochs=3"], None),
    ],
)
def test_a_fault_names_the_file_or_the_override(
    tmp_path: Path, text: str, overrides: list[str], said: str | None
) -> None:
    path = write(tmp_path, text)
    if said is None:
        assert TrainConfig.load(path, overrides).epochs == 3
        return
    with pytest.raises(UserError, match=said):
        TrainConfig.load(path, overrides)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml"):
        TrainConfig.load(tmp_path / "nothing.yaml")


def test_overrides_leave_the_given_mapping_alone() -> None:
    content = {"optimizer": {"name": "sgd"}}
    assert apply_overrides(TrainConfig, content, ["optimizer.learning_rate=2"]) == {
        "optimizer": {"name": "sgd", "learning_rate": 2}
    }
    assert content == {"optimizer": {"name": "sgd"}}


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("epochs=9", None),
        ("max_steps=9", None),
        ("checkpoint.every_steps=7", None),
        ("early_stopping={patience: 9}", None),
        ("batch_size=7", "batch_size: 4096 -> 7"),
        ("model.factors=3", "model.factors: None -> 3"),
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate: 0.001 -> 0.5"),
        ("validation.metric=log_loss", "validation.metric: 'auc' -> 'log_loss'"),
        ("seed=1", "seed: 0 -> 1"),
    ],
)
def test_what_a_resumed_run_may_be_told_anew(override: str, difference: str | None) -> None:
    assert TrainConfig.load(None, [override]).changed_from(TrainConfig()) == difference


@pytest.mark.parametrize("name", ["criteo", "avazu", "movielens-100k", "telco", "frappe"])
def test_the_examples_fit_their_models(root: Path, name: str) -> None:
    config = TrainConfig.load(root / "examples" / name / "train.yaml")
    parse_options(config.model.name, interaction_class(config.model.name).Options, config.model.options)
    optimizers.build(config.optimizer.name, learning_rate=config.optimizer.learning_rate, **config.optimizer.options)


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(min_value=1e-12, max_value=1e3, allow_nan=False))
def test_any_number_as_python_writes_it_is_that_number(rate: float) -> None:
    assert TrainConfig.load(None, [f"optimizer.learning_rate={rate!r}"]).optimizer.learning_rate == rate


def test_the_placement_of_the_table_may_change_on_resume() -> None:
    before, now = (TrainConfig.load(None, [f"table.placement={where}"]) for where in ("replicated", "sharded"))
    assert now.changed_from(before) is None
    with pytest.raises(UserError, match=r"table\.placement: 'spread'"):
        TrainConfig.load(None, ["table.placement=spread"])
