"""The application that sub-commands register with, its common options, and how commands report."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from afm_ctr import __version__
from afm_ctr.errors import UserError
from afm_ctr.io.paths import is_remote, local_files_alone, local_path
from afm_ctr.visible import visible

# In the order of the work; other commands come last.
_ORDER = (
    "doctor", "make-logs", "init", "infer-schema", "prepare", "stats", "plan", "train", "evaluate", "report",
    "explain", "predict", "export", "validate-export", "serve", "score", "load-test",
)  # fmt: skip


# Commands whose --input takes several paths, as from a shell pattern without quotes.
_SEVERAL_INPUTS = ("init", "infer-schema", "prepare", "predict")


def each_input(arguments: list[str]) -> list[str]:
    """``--input a b`` as ``--input a --input b``."""
    if not arguments or arguments[0] not in _SEVERAL_INPUTS:
        return arguments
    found: list[str] = []
    rest = iter(arguments)
    takes_more = False
    for argument in rest:
        if argument == "--input":
            found += [argument, *itertools.islice(rest, 1)]
            takes_more = True
        elif takes_more and not argument.startswith("-"):
            found += ["--input", argument]
        else:
            found.append(argument)
            takes_more = argument.startswith("--input=")
    return found


class _InOrder(TyperGroup):
    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        return super().parse_args(context, each_input(args))

    def list_commands(self, context: Any) -> list[str]:
        names = super().list_commands(context)
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


app = typer.Typer(
    name="afm-ctr",
    cls=_InOrder,
    help="Attentional factorization machines for click-through rate: raw logs to a scored request.",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def path_option(**options: Any) -> Any:
    """``typer.Option`` for a local path; a URL of an object store is refused, with a remedy."""
    return typer.Option(parser=on_this_machine, **{"metavar": "PATH", **options})


def on_this_machine(path: str | Path) -> Path:
    """A path as typed; ``file:///a`` is ``/a``. An empty one is refused: ``Path`` would make it ``.``."""
    if not str(path):
        raise UserError("a path is empty, perhaps an unset shell variable; give the path, or . for this folder")
    local = local_path(str(path))
    if is_remote(local):  # as a Path it would be s3:/a
        raise local_files_alone(local)
    return Path(local)


JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object last on stdout.")]


def _is_reporting() -> bool:
    """Only rank 0 reports, as the other ranks' reports are the same. In an elastic job its process may change."""
    return os.environ.get("HOROVOD_RANK", "0") == "0"


class _Console(Console):
    """A console for texts from logs and file names, in which markup and control characters have no effect."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text, keep="\n\t"), **options)


_SECONDS_UNSAID = 3.0

console = _Console(quiet=not _is_reporting(), highlight=False)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        print(f"afm-ctr {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say what takes long: a terminal at once, elsewhere stderr gets a line after some seconds."""
    if console.is_terminal:
        with console.status(Text(visible(what))):
            yield
        return
    line = threading.Timer(_SECONDS_UNSAID, lambda: print(f"{visible(what)} …", file=sys.stderr, flush=True))
    line.daemon = True
    if _is_reporting():
        line.start()
    try:
        yield
    finally:
        line.cancel()


def say(text: object, end: str = "\n") -> None:
    """Print a text unchanged: brackets are not markup, and only a terminal's lines are wrapped."""
    console.print(str(text), markup=False, soft_wrap=not console.is_terminal, end=end)


def report_summary(as_json: bool, summary: Any) -> None:
    """:func:`report` of a result with ``to_json()``, whose ``str`` is for people."""
    report(as_json, summary.to_json(), lambda: say(summary))


def report(as_json: bool, result: dict[str, Any], show: Callable[[], None]) -> None:
    """Show a command's result; with ``--json`` also print it as one JSON object, last on stdout."""
    if not _is_reporting():
        return
    console.quiet = False
    show()
    if as_json:
        print(visible(json.dumps(result, ensure_ascii=False, allow_nan=False, default=str)), flush=True)
