"""The environments of the peers that benchmarks compare with: created once per Python, separate from ours.

They are below ``$AFM_CTR_CACHE``, else ``$XDG_CACHE_HOME/afm-ctr``, else ``~/.cache/afm-ctr``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
from building import cache, locked, run

# torch without a build in its version: the index decides, and one without CUDA is enough.
ENVIRONMENTS = {
    "deepctr": ["deepctr==0.9.4", "tensorflow==2.15.1"],
    "fuxictr": ["fuxictr==2.3.10", "torch==2.13.0", "polars<1.30"],
    "polars": ["polars==2.1.0"],
    "pandas": ["pandas==2.3.3", "scikit-learn==1.9.1"],
    "transform": ["tensorflow-transform==1.21.0"],
}


# The newest Python, 3.N, with wheels of everything that a peer needs, unless any works.
NEWEST = {"deepctr": 11}
HERE = sys.version_info.minor


def place(name: str) -> tuple[Path, str]:
    """The folder of a peer's environment, and the Python that creates it: this one, or an older one on the PATH.

    Raises:
        RuntimeError: there is no such Python.
    """
    newest = NEWEST.get(name, HERE)
    found = (
        {HERE: sys.executable} if newest >= HERE else {n: shutil.which(f"python3.{n}") for n in range(newest, 8, -1)}
    )
    for minor, python in found.items():
        if python:
            return cache() / "peers" / f"{name}-3.{minor}", python
    raise RuntimeError(f"{name} needs Python 3.{newest}, and this is 3.{HERE}: put python3.{newest} on the PATH")


def environment(name: str) -> Path:
    """The interpreter of a peer's environment, which is created if it is missing or has other versions.

    Raises:
        RuntimeError: it cannot be installed; the text ends with pip's output.
    """
    folder, python = place(name)
    interpreter, done = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(ENVIRONMENTS[name])
    with locked(folder):
        if not done.exists() or done.read_text() != wanted:
            print(f"installing {' '.join(ENVIRONMENTS[name])} in {folder} ", end="", flush=True)
            log = folder.parent / f"{folder.name}.log"
            log.unlink(missing_ok=True)
            run([python, "-m", "venv", "--clear", str(folder)], log)
            run([str(interpreter), "-m", "pip", "install", *ENVIRONMENTS[name]], log)
            done.write_text(wanted)
            print()
    return interpreter
