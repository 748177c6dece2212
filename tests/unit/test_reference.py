"""docs/reference.md is what its script makes of the classes now, and the classes load its examples."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from afm_ctr import optimizers
from afm_ctr.io.yaml import parse_yaml
from afm_ctr.models import interaction_class, parse_options
from afm_ctr.schema import read_yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import build_reference  # noqa: E402

PAGE = build_reference.PAGE.read_text(encoding="utf-8")
EXAMPLES: dict[str, str] = dict(re.findall(r"^### (.+?)$.*?^```yaml\n(.*?)^```$", PAGE, re.M | re.S))


def loaders() -> dict[str, Callable[[Any], Any]]:
    found: dict[str, Callable[[Any], Any]] = {}
    for top, _, _ in build_reference.TOPS:
        found |= {model.__name__: model.model_validate for model in build_reference.reached_from(top)}
    for name, model in build_reference.our_models():
        found[f"model: {name}"] = lambda read, model=model: parse_options(read.pop("name"), model.Options, read)
    for name in optimizers.names():
        found[f"optimizer: {name}"] = lambda read: optimizers.build(**read)
    return found


LOADERS = loaders()


def test_the_page_is_what_the_script_makes() -> None:
    assert build_reference.page() == PAGE, "run `.venv/bin/python scripts/build_reference.py`"


def test_every_class_has_an_example_on_the_page() -> None:
    assert EXAMPLES.keys() == LOADERS.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_load(name: str, tmp_path: Path) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(EXAMPLES[name])
    read = read_yaml(file)
    assert parse_yaml(EXAMPLES[name], name) == read, "both files are read alike"
    LOADERS[name]({**read})
    if name.partition(":")[0] in ("model", "optimizer"):
        assert read["name"] == name.partition(": ")[2]


def test_what_the_page_says_of_a_key() -> None:
    (line,) = re.findall(r"^\| `batch_size` .*$", PAGE, re.M)
    assert line == "| `batch_size` | whole number ≥ 1 | `4096` | rows per step, over all ranks together. |"
    (line,) = re.findall(r"^\| `missing` .*MissingValue.*$", PAGE, re.M)
    assert line.startswith("| `missing` | `absent` or `own` or [MissingValue](#missingvalue) | `absent` | ")
    (line,) = set(re.findall(r"^\| `attention_dropout` .*$", PAGE, re.M))  # of two models
    assert line.startswith("| `attention_dropout` | number ≥ 0 < 1 | `0.0` | ")
    anchors = {build_reference.anchor(heading) for heading in re.findall(r"^#+ (.+)$", PAGE, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors


def test_a_key_without_words_and_a_class_without_an_example_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = interaction_class("afm").Options
    monkeypatch.setitem(model.model_fields, "attention", model.model_fields["attention"]._copy())
    monkeypatch.setattr(model.model_fields["attention"], "description", None)
    with pytest.raises(LookupError, match=r"AFMOptions.attention: say what it means"):
        build_reference.page()
    examples = yaml.safe_load(build_reference.EXAMPLES.read_text())
    del examples["Label"]
    (tmp_path / "examples.yaml").write_text(yaml.safe_dump(examples))
    monkeypatch.setattr(build_reference, "EXAMPLES", tmp_path / "examples.yaml")
    with pytest.raises(LookupError, match="there is no example of Label"):
        build_reference.page()
