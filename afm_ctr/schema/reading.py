"""YAML into a frozen model; every problem becomes one line with file, key path, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from afm_ctr.errors import UserError
from afm_ctr.schema.base import NAME_PATTERN, Problems, closest, path_text

Model = TypeVar("Model", bound=BaseModel)

# Pure Python where libyaml is not built in: slower, the same result.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """YAML 1.2's core scalars: an unquoted Yes, No, on, 010 or 1:30 stays the text it is; 1e-3 is a number."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - the library's own interface


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def _mapping_without_repeats(loader: Any, node: Any) -> dict[Any, Any]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        if key_node.tag.endswith(":merge"):
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{key}' is given twice", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return dict(loader.construct_mapping(node, deep=True))


def _float(loader: Any, node: Any) -> float:
    return float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: the file is absent, unreadable, or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def validate(model: type[Model], data: Any, path: Path | str) -> Model:
    """``model`` from plain data.

    Raises:
        UserError: one line with every problem found (up to five), each with its key path.
    """
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a mapping of keys ({', '.join(model.model_fields)}), not {_shown(data)}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = problem_lines(error, data)
        more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise UserError(f"{path}: {'; '.join(lines[:5])}{more}") from None


def problem_lines(error: ValidationError, data: Any) -> list[str]:
    """Each problem as ``key.path: value: what is wrong``, in the order of the file."""
    lines = []
    for found in error.errors(include_url=False):
        location = _without_tags(found["loc"], data)
        context = found.get("ctx", {})
        cause = context.get("error")
        if found["type"] == "too_short" and len(found["input"]) >= context["min_length"]:
            continue  # its entries are wrong, and each of them is reported
        if isinstance(cause, Problems):
            lines += [f"{path_text((*location, *p.location))}: {p.message}" for p in cause.problems]
        elif found["type"] == "missing":
            lines.append(f"{path_text(location)}: must be given")
        elif found["type"] in ("union_tag_not_found", "union_tag_invalid"):
            expected = context.get("expected_tags", "")
            if "tag" in context:
                hint = closest(str(context["tag"]), re.findall(r"'([^']*)'", expected))
                lines.append(f"{path_text((*location, 'kind'))}: {context['tag']!r}: must be one of {expected}{hint}")
            else:
                lines.append(f"{path_text((*location, 'kind'))}: must be given")
        else:
            lines.append(f"{path_text(location)}: {_shown(found['input'])}: {_said(found)}".lstrip(": "))
    return lines


def _said(found: Any) -> str:
    """The message, in the words of the schema."""
    kind, context = found["type"], found.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return f"must fit {NAME_PATTERN}"
    if kind == "literal_error":
        hint = closest(str(found["input"]), re.findall(r"'([^']*)'", context["expected"]))
        return f"must be {context['expected']}{hint}"
    if kind == "too_short":
        return f"must have at least {context['min_length']} of them"
    if kind in ("model_attributes_type", "dict_type", "model_type"):
        return "must be a mapping of keys"
    text = found["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("String should ")
    if found["msg"].startswith("String should"):
        return f"must {text}"
    return text if kind == "value_error" else f"must be {text}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _without_tags(location: tuple[str | int, ...], data: Any) -> tuple[str | int, ...]:
    """pydantic puts the tag of a union into the path; a user's file has no such key."""
    path: list[str | int] = []
    for part in location:
        if part == "[key]":  # the key itself is wrong, and is in the path already
            continue
        if isinstance(data, dict):
            if part not in data and (part == data.get("kind") or str(part).startswith("<")):
                continue
            data = data.get(part)
            path.append(part)
        elif isinstance(data, (list, tuple)) and isinstance(part, int):
            path.append(part)
            data = data[part] if part < len(data) else None
    return tuple(path)
