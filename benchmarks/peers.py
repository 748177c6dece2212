"""The environments of the peers that benchmarks compare with: made once, each apart from ours.

They live below ``$AFM_CTR_CACHE``, else ``$XDG_CACHE_HOME/afm-ctr``, else ``~/.cache/afm-ctr``.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
from building import cache, locked, run

# torch by its version alone: the index decides on the build, and one without CUDA is enough.
ENVIRONMENTS = {
    "deepctr": ["deepctr==0.9.4", "tensorflow==2.15.1"],
    "fuxictr": ["fuxictr==2.3.10", "torch==2.13.0", "polars<1.30"],
    "polars": ["polars==2.1.0"],
    "pandas": ["pandas==2.3.3", "scikit-learn==1.9.1"],
}


def environment(name: str) -> Path:
    """The interpreter of a peer's environment, made if it is not there or is for other versions.

    Raises:
        RuntimeError: it cannot be installed; the text ends with what pip said.
    """
    place = cache() / "peers" / name
    interpreter, done = place / "bin" / "python", place / "installed.txt"
    wanted = "\n".join([platform.python_version(), *ENVIRONMENTS[name]])
    with locked(place):
        if not done.exists() or done.read_text() != wanted:
            print(f"installing {' '.join(ENVIRONMENTS[name])} in {place} ", end="", flush=True)
            log = place.parent / f"{name}.log"
            log.unlink(missing_ok=True)
            run([sys.executable, "-m", "venv", "--clear", str(place)], log)
            run([str(interpreter), "-m", "pip", "install", *ENVIRONMENTS[name]], log)
            done.write_text(wanted)
            print()
    return interpreter
