"""The ``afm-ctr`` command."""

import sys

try:
    from afm_ctr.cli.main import main
except ModuleNotFoundError as error:
    if error.name not in ("rich", "typer"):
        raise
    print(
        f"afm-ctr: {error.name} is not installed here: pip install '.[cli]' in the project's folder", file=sys.stderr
    )
    sys.exit(2)

__all__ = ["main"]
