"""Who may lean on whom: no import goes upwards, none goes in a circle, and the client stands alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# From the ground up. A module imports from its own room and from lower floors; rooms of one floor do not know each
# other. A room that is absent here fails the test: give it the lowest floor that works.
FLOORS = (
    "afm_ctr.errors afm_ctr.huge_pages afm_ctr.installed afm_ctr.lazy_names afm_ctr.row_shards afm_ctr.splitmix "
    "afm_ctr.visible",
    "afm_ctr.penalty serving.cell_text serving.channel serving.errors serving.protos serving.tensors",
    "afm_ctr.devices afm_ctr.forked afm_ctr.io afm_ctr.metrics afm_ctr.plots",
    "afm_ctr.native",
    "afm_ctr.sparse_gradients",
    "afm_ctr.embedding",
    "afm_ctr.optimizers",
    "serving.calls serving.responses serving.server serving.top_pairs",
    "afm_ctr.distributed afm_ctr.process_setup afm_ctr.schema afm_ctr.synthetic afm_ctr.webpage",
    "serving.connection serving.rows",
    "afm_ctr.doctor afm_ctr.features afm_ctr.interactions afm_ctr.sample_rows afm_ctr.sidetables afm_ctr.statistics",
    "afm_ctr.sizing serving.client",
    "afm_ctr.analysis afm_ctr.layers afm_ctr.models afm_ctr.pair_signal afm_ctr.rawlog afm_ctr.records",
    "afm_ctr.infer afm_ctr.training beam_jobs serving.score",
    "afm_ctr.explain afm_ctr.export afm_ctr.prediction serving.load",
    "afm_ctr.frames afm_ctr.report",
    "afm_ctr.cli",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
CLIENT = {
    "serving",
    "serving.calls",
    "serving.cell_text",
    "serving.channel",
    "serving.client",
    "serving.connection",
    "serving.errors",
    "serving.protos",
    "serving.responses",
    "serving.rows",
    "serving.tensors",
    "serving.top_pairs",
}


@pytest.fixture(scope="module")
def modules(root: Path) -> dict[str, Path]:
    """Every shipped module by its dotted name; a package stands for its ``__init__``."""
    found = {}
    for top in ("afm_ctr", "beam_jobs", "serving"):
        for path in (root / top).rglob("*.py"):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that a module imports, within functions too; not those for the type checker only.

    ``package`` is what a relative import starts from.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)
        yield from imports(node, package)


@pytest.fixture(scope="module")
def graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Module to the modules of ours that it imports."""
    edges: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for target in imports(ast.parse(path.read_text(encoding="utf-8")), package):
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target != name:
                edges[name].add(target)
    return edges


def room(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "beam_jobs" else ".".join(parts[:2])


def test_every_room_has_a_floor(modules: dict[str, Path]) -> None:
    rooms = {room(name) for name in modules} - {"afm_ctr", "serving"}
    assert rooms == set(FLOOR), f"not in FLOORS: {sorted(rooms - set(FLOOR))}; gone: {sorted(set(FLOOR) - rooms)}"


def test_no_import_goes_upwards(graph: dict[str, set[str]]) -> None:
    wrong = [
        f"{name} imports {target}"
        for name, targets in graph.items()
        for target in targets
        if room(target) in FLOOR and room(name) not in ("afm_ctr", "serving", room(target))
        if FLOOR[room(target)] >= FLOOR[room(name)]
    ]
    assert not wrong


def test_no_import_goes_in_a_circle(graph: dict[str, set[str]]) -> None:
    """Depth first; a package's ``__init__`` is a module like others."""
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"a circle: {' -> '.join([*trail[trail.index(module) :], module])}"
        if module not in done:
            for target in sorted(graph[module]):
                walk(target, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        walk(module, ())


def test_the_client_knows_nothing_of_the_framework(graph: dict[str, set[str]]) -> None:
    seen, waiting = set(), ["serving.client"]
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting += graph[module] - seen
    assert {room(module) for module in seen} <= CLIENT


def test_relative_imports_and_those_in_functions_are_seen() -> None:
    source = (
        "import a.b\nfrom c import d\ndef f():\n    import e\nif TYPE_CHECKING:\n    import g\n"
        "from .h import i\nfrom . import j\nfrom ..k import l\n"
    )
    assert list(imports(ast.parse(source), "p.q")) == ["a.b", "c.d", "e", "p.q.h.i", "p.q.j", "p.k.l"]


def test_no_script_hides_a_package(root: Path) -> None:
    """A script imports from its own folder first: a file there named like a package would stand for it."""
    scripts = {path.stem for folder in ("benchmarks", "scripts") for path in (root / folder).rglob("*.py")}
    assert not scripts & {"afm_ctr", "beam_jobs", "serving"}
