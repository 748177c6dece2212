"""``--set key.path=value``: values are YAML, and the path must exist in the config."""

from __future__ import annotations

import copy
import difflib
import types
import typing
from typing import Any

from pydantic import BaseModel

from afm_ctr.errors import UserError
from afm_ctr.io.yaml import parse_yaml


def apply_overrides(
    model: type[BaseModel], content: dict[str, Any], overrides: typing.Iterable[str]
) -> dict[str, Any]:
    """A copy of ``content`` with every ``key.path=value`` applied; values are parsed as YAML.

    Raises:
        UserError: an override without ``=``, an unparsable value, or a path that the config does not have.
    """
    result = copy.deepcopy(content)
    for override in overrides:
        path, found, text = override.partition("=")
        path = path.strip()
        if not found or not path:
            raise UserError(f"--set {override}: write key.path=value, for example --set optimizer.learning_rate=0.01")
        keys = path.split(".")
        _check_path(model, keys, override)
        at = result
        for key in keys[:-1]:
            if not isinstance(at.get(key), dict):
                at[key] = {}
            at = at[key]
        at[keys[-1]] = parse_yaml(text, f"--set {override}")
    return result


def _check_path(model: type[BaseModel] | None, keys: list[str], override: str) -> None:
    """Walk the declared fields; an open mapping (model and optimizer options) accepts any one key."""
    for depth, key in enumerate(keys):
        done = ".".join(keys[:depth])
        if model is None:
            raise UserError(f"--set {override}: {done} holds a value and has no key {key!r}")
        fields = model.model_fields
        if key not in fields:
            if model.model_config.get("extra") == "allow":
                model = None
                continue
            known = [f"{done}.{name}" if done else name for name in fields]
            close = difflib.get_close_matches(".".join(keys[: depth + 1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
            raise UserError(f"--set {override}: unknown key {'.'.join(keys[: depth + 1])}; {hint}")
        annotation = fields[key].annotation
        model = _model_in(annotation)
        mapping = any(typing.get_origin(part) is dict for part in _parts(annotation))
        if model is None and mapping and depth + 2 == len(keys):
            return


def _parts(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [part for arm in typing.get_args(annotation) for part in _parts(arm)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _parts(typing.get_args(annotation)[0])
    return [annotation]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None
