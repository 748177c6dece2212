"""The registry of models: built-in ones, and those of other packages by entry points."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from afm_ctr.errors import UserError
from afm_ctr.models import options as of_ours
from afm_ctr.models.options import parse_options

if TYPE_CHECKING:
    from afm_ctr.models.base import Interaction

GROUP = "afm_ctr.models"

# Built-in names are listed, so that they work when the package runs from a folder without being installed.
_OURS = {
    "afm": "afm_ctr.models.afm:AFM",
    "deep_afm": "afm_ctr.models.deep_afm:DeepAFM",
    "fm": "afm_ctr.models.fm:FM",
    "lr": "afm_ctr.models.lr:LR",
}
_registered: dict[str, type[Interaction]] = {}


def register(name: str, model: type[Interaction]) -> None:
    """Register a model in this process only, for a notebook or a test; a package uses the entry point group.

    Raises:
        UserError: there is a model of that name already.
    """
    if name in _registered or name in _OURS or name in _entries():
        raise UserError(f"there is a model {name!r} already; choose another name")
    _registered[name] = model


def names() -> list[str]:
    """All names for :func:`interaction_class`."""
    return sorted({*_OURS, *_registered, *_entries()})


def check_model(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown name, and unknown options of a built-in model, without TensorFlow.

    Raises:
        UserError: as :func:`interaction_class` and ``parse_options`` would.
    """
    if name in _OURS:
        parse_options(name, getattr(of_ours, f"{_OURS[name].split(':')[1]}Options"), options)
    elif name not in names():
        raise _unknown(name)


def interaction_class(name: str) -> type[Interaction]:
    """The class of that name.

    Raises:
        UserError: there is none, several packages define the name, or the entry point cannot be imported or is not an
            :class:`Interaction`.
    """
    if name in _registered:
        return _registered[name]
    if name in _OURS:
        module, attribute = _OURS[name].split(":")
        return getattr(importlib.import_module(module), attribute)
    found = _entries().get(name)
    if not found:
        raise _unknown(name)
    if len(found) > 1:
        owners = ", ".join(entry.value for entry in found)
        raise UserError(f"model {name!r} is claimed by several packages ({owners}); uninstall all but one")
    try:
        loaded = found[0].load()
    except Exception as error:
        raise UserError(f"model {name!r}: cannot load {found[0].value}: {error}") from error
    from afm_ctr.models.base import Interaction

    if not (isinstance(loaded, type) and issubclass(loaded, Interaction)):
        raise UserError(f"model {name!r}: {found[0].value} is not a subclass of afm_ctr.models.Interaction")
    return loaded


def _unknown(name: str) -> UserError:
    return UserError(f"there is no model {name!r}; there are: {', '.join(names())}")


def _entries() -> dict[str, list[EntryPoint]]:
    """The entry points by name, without the built-in ones and duplicates (a package may be on the path twice)."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        if entry.name not in _OURS:
            found.setdefault(entry.name, {})[entry.value] = entry
    return {name: list(by_value.values()) for name, by_value in found.items()}
