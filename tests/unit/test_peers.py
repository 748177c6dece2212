"""Where the environments of the benchmarks' peers are, by the Python that runs the benchmark."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import peers


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that would be run; environments are empty folders of a cache of the test's own."""
    found: list[list[str]] = []

    def run(command: list[str], log: Path) -> None:
        found.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True, exist_ok=True)

    monkeypatch.setenv("AFM_CTR_CACHE", str(tmp_path))
    monkeypatch.setattr(peers, "run", run)
    return found


def test_each_python_keeps_its_environment(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "HERE", 13)
    newer = peers.environment("fuxictr")
    monkeypatch.setattr(peers, "HERE", 12)
    older = peers.environment("fuxictr")
    assert len(commands) == 4 and newer.parents[1].name == "fuxictr-3.13" and older.parents[1].name == "fuxictr-3.12"
    monkeypatch.setattr(peers, "HERE", 13)
    assert peers.environment("fuxictr") == newer and len(commands) == 4
    monkeypatch.setitem(peers.ENVIRONMENTS, "fuxictr", ["fuxictr==9"])
    peers.environment("fuxictr")
    assert commands[4][1:3] == ["-m", "venv"] and commands[5][-1] == "fuxictr==9"


def test_a_peer_of_an_older_python_takes_that_from_the_path(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "HERE", 13)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RuntimeError, match=r"^deepctr needs Python 3.11, and this is 3.13: put python3.11 on the PATH$"
    ):
        peers.environment("deepctr")
    assert commands == []
    python = tmp_path / "python3.10"
    python.write_text("")
    python.chmod(0o755)
    assert peers.environment("deepctr").parents[1].name == "deepctr-3.10"
    assert commands[0][0] == str(python)
    monkeypatch.setattr(peers, "HERE", 11)
    assert peers.environment("deepctr").parents[1].name == "deepctr-3.11" and commands[2][0] == sys.executable
