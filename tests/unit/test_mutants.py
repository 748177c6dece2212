"""What mutation testing draws from and runs; the run itself is `make mutants`."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import mutants
from mutants import AREAS


def test_modules_and_tests_of_every_area_are_there(root: Path) -> None:
    for modules, tests in AREAS.values():
        paths = modules.split() + [f"tests/unit/test_{name}.py" for name in tests.split()]
        assert [path for path in paths if not (root / path).is_file()] == []


def test_the_tool_is_pinned_by_hash(root: Path) -> None:
    text = (root / "requirements" / "mutants.txt").read_text()
    pinned = re.findall(r"^([a-z0-9-]+)==\S+ \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.M)
    assert "cosmic-ray" in pinned and len(pinned) == text.count("==") == text.count("--hash")


def test_annotations_and_decorators_are_left_out() -> None:
    source = "@cache(1)\ndef one(a: int | None = 2) -> 'A | B':\n    b: list[3] = 4\n    return 5 < 6\n"
    lines = source.splitlines()
    places = sorted(mutants.not_run(ast.parse(source)))
    left_out = "".join(lines[line - 1][column] for line, column in places)
    assert left_out == "cache(1)int | None'A | B'list[3]"


@pytest.mark.parametrize(
    ("operator", "kept"),
    [
        ("core/ReplaceBinaryOperator_Add_Sub", True),
        ("core/ReplaceBinaryOperator_BitOr_BitAnd", True),
        ("core/ReplaceBinaryOperator_Add_RShift", False),
        ("core/ReplaceBinaryOperator_BitXor_Pow", False),
        ("core/ReplaceComparisonOperator_Is_IsNot", True),
        ("core/ReplaceComparisonOperator_Is_Eq", False),
        ("core/NumberReplacer", True),
        ("core/RemoveDecorator", False),
        ("core/VariableInserter", False),
    ],
)
def test_operators_are_those_whose_changes_say_something(operator: str, kept: bool) -> None:
    assert mutants.telling(operator) == kept


def test_killed_survived_and_never_ending_are_told_apart(tmp_path: Path) -> None:
    """In a small project of its own, in another process: children are forked there, without TensorFlow's threads."""
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    (tmp_path / "one.py").write_text("VALUE = 1\n")
    tests = (
        "from one import VALUE\n\n\ndef test_value():\n    while VALUE == 3:\n        pass\n    assert VALUE < 2\n"
    )
    (tmp_path / "tests" / "unit" / "test_one.py").write_text(tests)
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(mutants.__file__).parent)!r})
sys.dont_write_bytecode = True
import mutants, pytest
root = Path({str(tmp_path)!r})
mutants.WORK, mutants.ROOT = root, root
mutants.AREAS = {{"area": ("one.py", "one")}}
(root / "tree" / "tests" / "unit").mkdir(parents=True)
for name in ("one.py", "tests/unit/test_one.py"):
    (root / "tree" / name).write_text((root / name).read_text())
drawn = [mutants.Mutant("area", "one.py", 1, f"VALUE = {{value}}\\n", "") for value in (0, 2, 1, 3)]
mutants.run_all(drawn[:3], [root / "tree"], 100.0)
mutants.run_all(drawn[3:], [root / "tree"], 0.2)
print([one.result for one in drawn], (root / "tree" / "one.py").read_text() == "VALUE = 1\\n")
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTEST_ADDOPTS": ""}
    )
    assert ended.stdout.splitlines()[-1:] == ["['survived', 'killed', 'survived', 'time'] True"], ended.stderr
