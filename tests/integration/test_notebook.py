"""The notebook runs as it is, and what it shows is what running it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: make setup")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: make setup")


def shown(notebook: Any) -> list[tuple[str, list[str]]]:
    """Of each output but warnings: its text, where it is printed, and the kinds of data it has."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    outputs = [output for output in outputs if output.get("name") != "stderr"]
    return [(output.get("text", ""), sorted(output.get("data", {}))) for output in outputs]


def test_the_notebook_shows_what_running_it_gives(root: Path, tmp_path: Path) -> None:
    path = root / "examples" / "notebooks" / "quickstart.ipynb"
    stored, fresh = nbformat.read(path, 4), nbformat.read(path, 4)
    nbformat.validate(stored)
    for cell in fresh.cells:
        cell.pop("outputs", None)
    in_folder = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(fresh, timeout=120, kernel_name="python3", resources=in_folder)
    client.execute()
    assert shown(fresh) == shown(stored)
    assert sum("image/png" in kinds for _, kinds in shown(fresh)) == 3
    assert (tmp_path / "served" / "clicks" / "1" / "saved_model.pb").is_file()


def test_it_is_the_second_link_of_the_readme(root: Path) -> None:
    links = [part.partition(")")[0] for part in (root / "README.md").read_text(encoding="utf-8").split("](")[1:]]
    assert links[1] == "examples/notebooks/quickstart.ipynb"
