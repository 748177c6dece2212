"""Types shared by the parts of a schema: names, counts, lists of cell texts."""

from __future__ import annotations

import keyword
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from afm_ctr.io.validation import Strict

NAME_PATTERN = r"[A-Za-z][A-Za-z0-9_]*"


# Column names become argument names of a SavedModel signature, and names of spaces become file names.
def is_argument(name: str) -> bool:
    """Whether a signature can have an argument of this name: not a Python keyword, and not ``self``."""
    return not keyword.iskeyword(name) and name != "self"


def _argument(name: str) -> str:
    if not is_argument(name):
        raise ValueError(f"cannot be an argument of a signature; choose another, with `header: {name}` for the log's")
    return name


Name = Annotated[str, StringConstraints(strict=True, pattern=f"^{NAME_PATTERN}$"), AfterValidator(_argument)]
_LARGEST_COUNT = 1 << 48  # ids of all fields together are int64


def _countable(value: int) -> int:
    if value > _LARGEST_COUNT:
        raise ValueError(f"must be at most {_LARGEST_COUNT}")
    return value


Count = Annotated[int, Field(strict=True, ge=1), AfterValidator(_countable)]


def cell_texts(value: Any) -> tuple[str, ...]:
    """A list of cell texts; integers become their digits, since YAML reads an unquoted 1 as a number."""
    if not isinstance(value, (list, tuple)):
        raise ValueError("must be a list of cell texts")
    for text in value:
        if isinstance(text, bool) or not isinstance(text, (str, int)):
            shown = "null" if text is None else repr(text).lower() if isinstance(text, bool) else repr(text)
            raise ValueError(f"{shown} is not a cell text; put it in quotes")
    return tuple(str(text) for text in value)


CellTexts = Annotated[tuple[str, ...], BeforeValidator(cell_texts)]


class NamedEntry(Strict):
    """A list entry with a name; a plain name stands for ``{name: …}``."""

    name: Name

    @model_validator(mode="before")
    @classmethod
    def _accept_plain_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data
