"""What every part of a schema shares: frozen models, names, and problems that know where they are."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

NAME_PATTERN = r"[A-Za-z][A-Za-z0-9_]*"

# Names of columns are argument names of a SavedModel signature, and names of spaces are file names.
Name = Annotated[str, StringConstraints(strict=True, pattern=f"^{NAME_PATTERN}$")]
Count = Annotated[int, Field(strict=True, ge=1)]


def cell_texts(value: Any) -> tuple[str, ...]:
    """A list of cell texts; whole numbers are taken as their digits, since YAML reads an unquoted 1 as a number."""
    if not isinstance(value, (list, tuple)):
        raise ValueError("must be a list of cell texts")
    for text in value:
        if isinstance(text, bool) or not isinstance(text, (str, int)):
            shown = "null" if text is None else repr(text).lower() if isinstance(text, bool) else repr(text)
            raise ValueError(f"{shown} is not a cell text; put it in quotes")
    return tuple(str(text) for text in value)


CellTexts = Annotated[tuple[str, ...], BeforeValidator(cell_texts)]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a schema.

    Attributes:
        location: keys and list positions that lead to it, relative to the model that reports it.
        message: what is wrong and how to mend it.
    """

    location: tuple[str | int, ...]
    message: str


class Problems(ValueError):
    """Several problems, each with its place; pydantic alone would lose the places of checks across keys."""

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
    """`` (did you mean 'x'?)``, or nothing where no known word comes near."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{found[0]}'?)" if found else ""


class Frozen(BaseModel):
    """A part of a schema: it cannot change, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = list(cls.model_fields)
        unknown = [key for key in data if key not in known]
        if unknown:
            keys = ", ".join(known)
            raise Problems(
                [
                    Problem((str(key),), f"unknown key{closest(str(key), known) or f' (the keys are {keys})'}")
                    for key in unknown
                ]
            )
        return data
