"""``python -m serving.server --model_name=afm --model_base_path=DIR --port=8500 --rest_api_port=8501``."""

from __future__ import annotations

import os
import sys

from afm_ctr.errors import UserError
from afm_ctr.visible import visible
from serving.server.flags import parse, usage


def main(arguments: list[str]) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if {"--help", "-h"} & set(arguments):
        print(usage())
        return 0
    try:
        flags = parse(arguments)
        from serving.server.app import run

        run(flags)
    except UserError as error:
        print(f"serving.server: {visible(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
