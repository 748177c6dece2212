"""Plain data into frozen models; every problem becomes one line with file, key path, value and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from afm_ctr.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Problem:
    """One problem in a file."""

    location: tuple[str | int, ...]  # path of keys and list positions, relative to the model that reports it
    message: str  # what is wrong and how to fix it


class Problems(ValueError):
    """Several problems, each with its location; pydantic would lose the locations of checks across keys."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{path_text(p.location)}: {p.message}" for p in problems))


def path_text(location: Sequence[str | int]) -> str:
    """``('fields', 3, 'name')`` as ``fields[3].name``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def closest(word: str, known: Sequence[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing if no known word is close."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{found[0]}'?)" if found else ""


class Strict(BaseModel):
    """A frozen model for which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @model_validator(mode="wrap")
    @classmethod
    def _name_unknown_keys(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        known = list(cls.model_fields)
        unknown = [key for key in data if key not in known] if isinstance(data, dict) else []
        if not unknown:
            return handler(data)
        keys = ", ".join(known)
        problems = [
            Problem((str(key),), f"unknown key{closest(str(key), known) or f' (the keys are {keys})'}")
            for key in unknown
        ]
        rest = {key: value for key, value in data.items() if key in known}
        try:
            handler(rest)
        except ValidationError as error:
            problems += problems_of(error, rest)
        raise Problems(problems)


def validate(model: type[Model], data: Any, path: Path | str) -> Model:
    """An instance of ``model`` from plain data.

    Raises:
        UserError: one line with every problem found (up to five), each with its key path.
    """
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a mapping of keys ({', '.join(model.model_fields)}), not {_shown(data)}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = problems_of(error, data)
        lines = [f"{path_text(p.location)}: {p.message}".removeprefix(": ") for p in problems]
        more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise UserError(f"{path}: {'; '.join(lines[:5])}{more}") from None


def problems_of(error: ValidationError, data: Any) -> list[Problem]:
    """Pydantic's errors about plain data, every problem once."""
    found: dict[Problem, tuple[bool, bool]] = {}  # -> in one arm of a union, only the wrong type for that arm
    for fault in error.errors(include_url=False):
        location = _without_tags(fault, data)
        kind, context = fault["type"], fault.get("ctx", {})
        in_union, wrong_type = len(location) < len(fault["loc"]), kind.endswith(("_type", "_parsing"))
        cause = context.get("error")
        if kind == "too_short" and len(fault["input"]) >= context["min_length"]:
            continue  # its entries are wrong, and each of them is reported
        if isinstance(cause, Problems):
            problems = [Problem((*location, *problem.location), problem.message) for problem in cause.problems]
        elif kind == "missing":
            problems = [Problem(location, "must be given")]
        elif kind == "union_tag_not_found" or (kind == "union_tag_invalid" and "tag" not in context):
            problems = [Problem((*location, "kind"), "must be given")]
        elif kind == "union_tag_invalid":
            expected = context.get("expected_tags", "")
            hint = closest(str(context["tag"]), re.findall(r"'([^']*)'", expected))
            problems = [Problem((*location, "kind"), f"{context['tag']!r}: must be one of {expected}{hint}")]
        else:
            problems = [Problem(location, f"{_shown(fault['input'])}: {_said(fault)}" if location else _said(fault))]
        found |= dict.fromkeys(problems, (in_union, wrong_type))
    # Each arm of a union reports errors: the deepest is the most useful, and "not a mapping" the least.
    kept: list[Problem] = []
    for problem, (in_union, wrong_type) in found.items():
        here = problem.location
        others = [(other.location, type_) for other, (inside, type_) in found.items() if inside and other != problem]
        deeper = any(len(there) > len(here) and there[: len(here)] == here for there, _ in others)
        if in_union and (deeper or (wrong_type and (here, False) in others)):
            continue
        before = kept[-1] if kept and in_union and wrong_type and kept[-1].location == here else None
        if before is None:
            kept.append(problem)
        else:  # of the wrong type for two arms: one value, one problem
            kept[-1] = Problem(here, f"{before.message} or {problem.message.rpartition('must be ')[2]}")
    return kept


def _said(found: Any) -> str:
    """The message, in the terms of the file."""
    kind, context = found["type"], found.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return f"must fit {context['pattern'].strip('^$')}"
    if kind == "literal_error":
        hint = closest(str(found["input"]), re.findall(r"'([^']*)'", context["expected"]))
        return f"must be {context['expected']}{hint}"
    if kind == "too_short":
        return f"must have at least {context['min_length']} of them"
    if kind in ("tuple_type", "list_type"):
        return "must be a list"
    if kind in ("model_attributes_type", "dict_type", "model_type"):
        return "must be a mapping of keys"
    text = found["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("String should ")
    text = text.partition(", unable to ")[0]
    if found["msg"].startswith("String should"):
        return f"must {text}"
    return text if kind == "value_error" else f"must be {text}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _without_tags(fault: Any, data: Any) -> tuple[str | int, ...]:
    """The location of an error; pydantic adds the arm of a union to the path, a key that the user's file lacks."""
    path: list[str | int] = []
    parts = fault["loc"]
    for depth, part in enumerate(parts):
        if part == "[key]":  # the key itself is wrong, and is in the path already
            continue
        if isinstance(data, dict):
            if part not in data and not (fault["type"] == "missing" and depth == len(parts) - 1):
                continue
            data = data.get(part)
            path.append(part)
        elif isinstance(data, (list, tuple)) and isinstance(part, int):
            path.append(part)
            data = data[part] if part < len(data) else None
    return tuple(path)
