"""``import afm_ctr``: the names that are promised, loaded when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import afm_ctr
import serving


def imported(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running the code."""
    script = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(ended.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("module", [afm_ctr, serving])
def test_every_promised_name_is_there_and_named_alike(module: object) -> None:
    names = module.__all__  # type: ignore[attr-defined]
    assert names == sorted(names) and len(set(names)) == len(names)
    for name in names:
        found = getattr(module, name)
        assert found.__name__.rpartition(".")[2] == name
        assert found.__doc__, f"{name} has no docstring"


def test_what_is_not_promised_is_an_error_that_lists_what_is() -> None:
    with pytest.raises(AttributeError, match="no attribute 'AFMModel'; it has: CTRModel"):
        _ = afm_ctr.AFMModel  # type: ignore[attr-defined]
    assert set(afm_ctr.__all__) <= set(dir(afm_ctr))


def test_importing_costs_nothing() -> None:
    heavy = {"tensorflow", "keras", "numpy", "pydantic", "apache_beam", "grpc"}
    assert not heavy & imported("import afm_ctr, serving, beam_jobs")
    assert not {"tensorflow", "keras", "apache_beam"} & imported("from afm_ctr import FeatureSchema, UserError")
