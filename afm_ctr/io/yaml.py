"""The only YAML reader: schemas, training configs and ``--set`` values are parsed in the same way."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from afm_ctr.errors import UserError
from afm_ctr.io.files import refusal
from afm_ctr.io.inputs import read_settings

# Pure Python if libyaml is missing: slower, the same result.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_DEEPEST = 100
_MOST_NODES = 100_000  # with every alias expanded; more only in proportion to the file's length


class _Loader(_Base):
    """YAML 1.2's core scalars: an unquoted Yes, No, on, 010 or 1:30 stays text; 1e-3 is a number."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - the library's own interface

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError):  # ``!!int x``, a number of 5,000 digits
            problem = "the value does not fit its type"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


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


def _check_depth(text: str) -> None:
    """Refuse nesting deeper than any schema has: libyaml recurses in C until the stack is full."""
    depth = 0
    event: Any
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.constructor.ConstructorError(None, None, "nested too deeply", event.start_mark)


def _check_aliases(root: Any) -> None:
    """Refuse a few lines that expand to millions of values: anchors in anchors, or in themselves."""
    sizes: dict[int, int | None] = {}  # of a node with its expansion; None: being counted

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = None
            pairs = isinstance(node, yaml.MappingNode)
            inside = [] if isinstance(node, yaml.ScalarNode) else node.value
            sizes[id(node)] = 1 + sum(size(part) for one in inside for part in (one if pairs else (one,)))
        found = sizes[id(node)]
        if found is None or found > _MOST_NODES + 10 * len(sizes):
            raise yaml.constructor.ConstructorError(None, None, "aliases stand for too much", node.start_mark)
        return found

    size(root)


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text.

    Args:
        text: YAML 1.2's core scalars; a repeated key is an error.
        where: the file or option that holds it; the error's line begins with it.

    Raises:
        UserError: not YAML; its line names the place, in a text of several lines as ``where:line:column``.
    """
    try:
        _check_depth(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _check_aliases(node)
                return loader.construct_document(node)
            return None
        finally:
            loader.dispose()
    except RecursionError:
        raise UserError(f"{where}: not valid YAML: nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark and "\n" in text else where
        raise UserError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises UserError: the file is absent, unreadable, or not YAML."""
    try:
        text = read_settings(path).decode()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {refusal(error)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    return parse_yaml(text, str(path))
