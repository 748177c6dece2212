"""Write docs/reference.md: every key of schema.yaml and train.yaml, from the classes that read them.

    .venv/bin/python scripts/build_reference.py             # writes the page
    .venv/bin/python scripts/build_reference.py --check     # exit code 1 if the page is not what would be written

Types, bounds and defaults are those of the pydantic classes, the texts come from their docstrings ("Attributes:") or,
for the options of models, from their fields' descriptions. A key without text is an error. The examples are in
reference_examples.yaml next to this script, by class.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import types
import typing
from collections import deque
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from afm_ctr import models, optimizers
from afm_ctr.schema import FeatureSchema
from afm_ctr.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference.md"
EXAMPLES = Path(__file__).with_name("reference_examples.yaml")
INTRODUCTION = """\
# Reference: schema.yaml and train.yaml

Every key of the two files that you write. A key that is not here is an error that names the nearest one. Keys
without default are "required"; all others are optional. A *name* is `[A-Za-z][A-Za-z0-9_]*`, except `self` and
keywords of Python (`class`).

`.venv/bin/python scripts/build_reference.py` writes this page: change the classes' docstrings instead.
"""
TOPS: tuple[tuple[type[BaseModel], str, str], ...] = (
    (FeatureSchema, "schema.yaml", "Read by every command that takes `--schema`."),
    (
        TrainConfig,
        "train.yaml",
        "Read by `afm-ctr train --config`; `--set key.path=value` changes a key for one run.",
    ),
)
_WORDS: dict[type, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "`null`",
}


def attributes_of(model: type) -> dict[str, str]:
    """The texts in a class's "Attributes:", including those of its bases."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        section = re.search(r"^Attributes:\n((?:[ ]+.*\n|\n)*)", inspect.cleandoc(one.__doc__ or "") + "\n", re.M)
        for line in section[1].splitlines() if section else ():
            if start := re.match(r" {4}(\w+): (.*)", line):
                name = start[1]
                found[name] = start[2]
            elif line.strip():
                found[name] += " " + line.strip()
    return {name: markdown(text) for name, text in found.items()}


def arguments_of(function: type) -> dict[str, str]:
    """The texts in a class's "Args:"."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n|\n)*)", inspect.cleandoc(function.__doc__ or "") + "\n", re.M)
    return {n: markdown(t) for n, t in re.findall(r"^ {4}(\w+): (.*)", section[1] if section else "", re.M)}


def markdown(text: str) -> str:
    """Docstring markup as Markdown; ``None`` becomes YAML's null."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return re.sub(r"``(.+?)``", r"`\1`", text).replace("`None`", "`null`")


def summary(model: type) -> str:
    """A docstring up to its sections, as paragraphs."""
    text = inspect.cleandoc(model.__doc__ or "")
    text = re.split(r"^(?:Attributes|Args|Reference|Source|Example):", text, flags=re.MULTILINE)[0]
    return markdown(text.strip()).replace("::\n", ":\n")


def hints_of(model: type[BaseModel]) -> dict[str, Any]:
    return typing.get_type_hints(model, include_extras=True)


def models_in(hint: Any) -> list[type[BaseModel]]:
    """The models that a type mentions, in order."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    return [model for part in get_args(hint) for model in models_in(part)]


def reached_from(top: type[BaseModel]) -> dict[type[BaseModel], list[str]]:
    """Every model below another one, breadth first, with the key paths that lead to it."""
    found: dict[type[BaseModel], list[str]] = {top: []}
    waiting = deque([(top, "")])
    while waiting:
        model, path = waiting.popleft()
        hints = hints_of(model)
        for name in model.model_fields:
            suffix = {tuple: "[]", dict: ".*"}.get(container_of(hints[name]), "")
            for below in models_in(hints[name]):
                here = f"{path}.{name}{suffix}".lstrip(".")
                if below not in found:
                    waiting.append((below, here))
                found.setdefault(below, [])
                found[below] += [here] if here not in found[below] else []
    return found


def container_of(hint: Any) -> Any:
    """tuple, dict, or None for a single value."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return get_origin(hint) if get_origin(hint) in (tuple, dict) else None


def bounds(marks: typing.Iterable[Any]) -> str:
    """`` ≥ 1``, from the marks of an annotation, some of which pydantic has twice."""
    said = []
    for mark in marks:
        if isinstance(mark, FieldInfo):
            said.append(bounds(mark.metadata))
            continue
        for key, sign in (("gt", " >"), ("ge", " ≥"), ("lt", " <"), ("le", " ≤"), ("min_length", ", length ≥")):
            if getattr(mark, key, None) is not None:
                said.append(f"{sign} {getattr(mark, key):,}")
    return "".join(dict.fromkeys(said))


def type_text(hint: Any, marks: typing.Iterable[Any] = ()) -> str:
    """A type in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner, *more = parts
        if any(getattr(mark, "pattern", None) for mark in more):
            return "name"
        return type_text(inner, [*more, *marks])
    if origin is Literal:
        return " or ".join(f"`{yaml_text(value)}`" for value in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(part, marks if part in _WORDS else ()) for part in parts))
    if origin is tuple:
        if len(parts) == 2 and parts[1] is Ellipsis:
            return f"list of {type_text(parts[0])}{bounds(marks)}"
        return f"list of {len(parts)}: {', '.join(type_text(part) for part in parts)}"
    if origin is dict:
        return f"mapping of {type_text(parts[0])} to {type_text(parts[1])}"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return f"[{title(hint)}](#{anchor(title(hint))})"
    return _WORDS[hint] + (bounds(marks) if hint not in (bool, type(None)) else "")


def title(model: type[BaseModel]) -> str:
    return model.__name__


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def yaml_text(value: Any) -> str:
    """A value as in a YAML file, on one line."""
    if isinstance(value, BaseModel):
        value = {key: one for key, one in value.model_dump(mode="json").items() if one is not None}
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


def default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    return f"`{yaml_text(value)}`"


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table_of(model: type[BaseModel]) -> list[str]:
    """One row per key.

    Raises:
        LookupError: a key has no text.
    """
    words, hints = attributes_of(model), hints_of(model)
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] != "kind"):
        text = words.get(name) or markdown(field.description or "")
        if name == "kind" and not text:
            text = "selects this one."
        if not text:
            raise LookupError(f"{model.__module__}.{model.__name__}.{name}: say what it means under Attributes")
        lines.append(row(f"`{name}`", type_text(hints[name], field.metadata), default_text(field), text))
    return lines


def example_of(name: str, examples: dict[str, str]) -> list[str]:
    if name not in examples:
        raise LookupError(f"{EXAMPLES.name}: there is no example of {name}")
    return ["```yaml", examples[name].rstrip(), "```"]


def section(model: type[BaseModel], paths: list[str], examples: dict[str, str]) -> list[str]:
    where = f"Of {', '.join(f'`{path}`' for path in paths)}. " if paths else ""
    lines = [f"### {title(model)}", "", where + summary(model), "", *table_of(model), ""]
    return [*lines, *example_of(model.__name__, examples), ""]


def our_models() -> list[tuple[str, type[models.Interaction]]]:
    """The models of this package, without those of other packages."""
    found = [(name, models.interaction_class(name)) for name in models.names()]
    return [(name, model) for name, model in found if model.__module__.startswith("afm_ctr.")]


def options_of_models(examples: dict[str, str]) -> list[str]:
    text = "Keys of `model` next to `name`. To add your own: [plugins.md](plugins.md)."
    lines = ["## Options of models", "", text, ""]
    for name, model in our_models():
        heading = [f"### model: {name}", "", summary(model), ""]
        lines += [*heading, *table_of(model.Options), "", *example_of(f"model: {name}", examples), ""]
    return lines


def options_of_optimizers(examples: dict[str, str]) -> list[str]:
    text = "Keys of `optimizer` next to `name`, `learning_rate`, `warmup_steps` and `decay`."
    lines = ["## Options of optimizers", "", text, ""]
    for name in optimizers.names():
        optimizer = type(optimizers.build(name))
        words = arguments_of(optimizer)
        lines += [f"### optimizer: {name}", "", summary(optimizer), ""]
        given = {key: one.default for key, one in inspect.signature(optimizer.__init__).parameters.items()}
        keys = [key for key in given if key in optimizer.option_names() - {"learning_rate"}]
        if keys:
            rows = [row(f"`{key}`", "number", f"`{yaml_text(given[key])}`", words[key]) for key in keys]
            lines += ["| key | type | default | |", "|---|---|---|---|", *rows, ""]
        lines += [*example_of(f"optimizer: {name}", examples), ""]
    return lines


def page() -> str:
    """The whole page.

    Raises:
        LookupError: a key without text, a class without an example, or an example without a class.
    """
    examples: dict[str, str] = yaml.safe_load(EXAMPLES.read_text(encoding="utf-8"))
    lines = [INTRODUCTION]
    used = set()
    for top, file, text in TOPS:
        lines += [f"## {file}", "", text, ""]
        for model, paths in reached_from(top).items():
            lines += section(model, paths, examples)
            used.add(model.__name__)
    lines += [*options_of_models(examples), *options_of_optimizers(examples)]
    used |= {f"model: {name}" for name, _ in our_models()} | {f"optimizer: {name}" for name in optimizers.names()}
    if extra := sorted(examples.keys() - used):
        raise LookupError(f"{EXAMPLES.name}: there is nothing called {', '.join(extra)}")
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    arguments = parser.parse_args()
    try:
        text = page()
    except LookupError as error:
        print(f"build_reference: {error.args[0]}", file=sys.stderr)
        return 2
    if arguments.check:
        same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE.relative_to(ROOT)}: {'up to date' if same else 'out of date'}")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
