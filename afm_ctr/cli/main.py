"""The entry point of the command: exit codes, and how errors are printed.

Exit 0: done. Exit 2: a user's mistake, in one line. Exit 1: a bug, with a traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback

import typer

from afm_ctr.cli import commands  # noqa: F401  (registers the sub-commands)
from afm_ctr.cli.app import app
from afm_ctr.errors import RunError, Stopped, UserError, find_lost_rank, find_user_error, release
from afm_ctr.io.files import refusal
from afm_ctr.io.secrets import mask_text
from afm_ctr.visible import fitted, visible

_EXTRA_OF = {
    "pydantic": "cli",
    "yaml": "cli",
    "tensorflow": "train",
    "keras": "train",
    "jinja2": "train",
    "matplotlib": "train",
    "google_crc32c": "train",
    "apache_beam": "beam",
    "tensorflow_serving": "serving",
    "grpc_health": "serving",
}
# Errors of the system about a path, which are not bugs.
_REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ELOOP,
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip


def _missing_package(error: ModuleNotFoundError) -> UserError | None:
    extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
    if extra is None:
        return None
    return UserError(f"{error.name} is not installed here: pip install '.[{extra}]' in the project's folder")


def _fail(error: Exception, code: int = 2) -> int:
    rank = os.environ.get("HOROVOD_RANK")
    where = f" (rank {rank})" if rank else ""
    print(fitted(f"afm-ctr{where}: {visible(mask_text(str(error)))}", sys.stderr), file=sys.stderr, flush=True)
    release(error)
    return code


class _Terminated(BaseException):
    """SIGTERM, handled like Ctrl-C, so that temporary files are removed."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second signal ends the process at once
    raise _Terminated


def main() -> None:
    """Run the command line and exit with its code."""
    if "HOROVOD_RANK" not in os.environ:  # there the launcher ends the ranks and waits for them
        signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # oneDNN chooses kernels, and thereby rounding, by machine and batch size.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        code = app(standalone_mode=False) or 0
        if code == 128 + signal.SIGINT:  # Typer's code for Ctrl-C
            raise KeyboardInterrupt
    except (typer.Abort, KeyboardInterrupt, _Terminated) as stop:
        code = 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
        print("afm-ctr: stopped", file=sys.stderr)
        release(stop)
    except typer.Exit as stop:
        code = stop.exit_code
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        named = [name for name in sys.argv[1:2] if any(name == command.name for command in app.registered_commands)]
        command = context.command_path if context else " ".join(["afm-ctr", *named])
        code = _fail(UserError(f"{error.format_message().rstrip('.')} (see {command} --help)"))
    except ModuleNotFoundError as error:
        missing = _missing_package(error)
        if missing is None:
            raise
        code = _fail(missing)
    except SystemExit as end:  # a rank whose host was removed from the job
        code = end.code if isinstance(end.code, int) else 1
    except Stopped as stop:
        code = _fail(stop, stop.code)
    except RunError as error:
        code = _fail(error, 1)
    except Exception as error:
        mistake = find_user_error(error)
        lost = find_lost_rank(error)
        if mistake is None and isinstance(error, OSError) and error.errno in _REFUSALS and error.filename is not None:
            mistake = UserError(f"{error.filename}: {refusal(error)}")
        if mistake is not None:
            code = _fail(mistake)
        elif lost is not None:
            code = _fail(lost, 1)
        else:
            traceback.print_exc()
            code = 1
        release(error)
    sys.stdout.flush()
    if os.environ.get("HOROVOD_ELASTIC") == "1":
        # The libraries' own clean-up was seen to wait minutes for a host that had left the network.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
