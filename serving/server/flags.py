"""The flags of ``tensorflow_model_server`` that the local server supports, under the same names."""

from __future__ import annotations

import ipaddress
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from afm_ctr.errors import UserError

_ADVICE = (
    "run the real server on the same folder: tensorflow_model_server, "
    "or docker compose -f deploy/docker-compose.yml up"
)

# Flags of the real server that this one does not support.
_REAL_SERVER_ONLY = """
batching_parameters_file enable_batching enable_cors_support enable_per_model_batching_parameters enable_profiler
enable_serialization_as_tensor_content enable_signature_method_name_check flush_filesystem_caches
force_allow_any_version_labels_for_unavailable_models grpc_socket_path load_retry_interval_micros max_num_load_retries
mixed_precision monitoring_config_file num_load_threads num_request_iterations_for_warmup
num_tflite_interpreters_per_pool num_tflite_pools num_unload_threads per_process_gpu_memory_fraction
platform_config_file prefer_tflite_model remove_unused_fields_from_bundle_metagraph rest_api_enable_cors_support
rest_api_timeout_in_ms saved_model_tags skip_initialize_tpu tensorflow_session_config_file
tensorflow_session_parallelism thread_pool_factory_config_file use_alts_credentials use_tflite_model version
xla_cpu_compilation_enabled xla_gpu_compilation_enabled
"""


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _port(text: str) -> int | None:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError
    return value or None


def _host(text: str) -> str:
    if text != "localhost":
        ipaddress.ip_address(text)
    return text


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def _flag(text: str) -> bool:
    if text not in ("true", "false", "1", "0"):
        raise ValueError
    return text in ("true", "1")


def _channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    options: list[tuple[str, int | str]] = []
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ValueError
        options.append((key, int(value) if value.lstrip("-").isdigit() else value))
    return tuple(options)


def _declare(parse: Callable[[str], Any], default: Any, wanted: str, text: str) -> Any:
    return field(default=default, metadata={"parse": parse, "wanted": wanted, "help": text})


@dataclass(frozen=True)
class ServerFlags:
    """Server flags. A port of None is off; port 0, from code only, is any free port."""

    model_base_path: str = _declare(str, "", "a folder", "folder of the numbered version folders")
    model_name: str = _declare(str, "default", "a name", "name of the model")
    port: int | None = _declare(_port, 8500, "a port", "gRPC API; 0: off")
    rest_api_port: int | None = _declare(_port, None, "a port", "HTTP/REST API; 0: off")
    host: str = _declare(
        _host, "127.0.0.1", "an address", "interface to listen on, 0.0.0.0: all; not a flag of the real server"
    )
    model_config_file: str = _declare(
        str, "", "a file", "one model with version policy and labels, in text format; replaces the two flags above"
    )
    model_config_file_poll_wait_seconds: float = _declare(
        _seconds, 0.0, "a number of seconds", "how often to read that file again; 0: read it once"
    )
    allow_version_labels_for_unavailable_models: bool = _declare(
        _flag, False, "true or false", "needed for labels at start, when no version is loaded yet"
    )
    ssl_config_file: str = _declare(str, "", "a file", "SSLConfig in text format: TLS, or mutual TLS, for gRPC")
    file_system_poll_wait_seconds: float = _declare(
        _seconds, 1.0, "a number of seconds", "how often to look for a new version; 0: look once"
    )
    grpc_max_threads: int = _declare(
        _count, 4 * (os.cpu_count() or 1), "a number of at least 1", "threads that answer gRPC requests"
    )
    grpc_channel_arguments: tuple[tuple[str, int | str], ...] = _declare(
        _channel_arguments, (), "key=value,key=value", "arguments of the gRPC server"
    )
    rest_api_num_threads: int = _declare(
        _count, 4 * (os.cpu_count() or 1), "a number of at least 1", "threads that answer REST requests"
    )
    enable_model_warmup: bool = _declare(
        _flag, True, "true or false", "replay assets.extra/tf_serving_warmup_requests"
    )
    enable_grpc_healthcheck_service: bool = _declare(
        _flag, True, "true or false", "the standard gRPC health service (the real server has it off by default)"
    )
    tensorflow_intra_op_parallelism: int = _declare(int, 0, "a number", "threads per op; 0: TensorFlow chooses")
    tensorflow_inter_op_parallelism: int = _declare(int, 0, "a number", "concurrent ops; 0: TensorFlow chooses")


_FIELDS = {item.name: item for item in fields(ServerFlags)}


def parse(arguments: Sequence[str]) -> ServerFlags:
    """Parse a command line: ``--flag=value``, ``--flag value``, or ``--flag`` for true; ``-`` in a name is ``_``.

    Raises:
        UserError: a flag that only the real server has, an unknown flag, or an invalid value.
    """
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not name:
            raise UserError(f"serve: {argument}: not a flag; write --flag=value (see --help)")
        name = name.replace("-", "_")
        if name in _REAL_SERVER_ONLY.split():
            raise UserError(
                f"serve: --{name} is a flag of TF Serving that this local server does not support; {_ADVICE}"
            )
        if name not in _FIELDS:
            raise UserError(f"serve: unknown flag --{name}; there are {', '.join('--' + known for known in _FIELDS)}")
        declared = _FIELDS[name].metadata
        if not equals:
            text = _next_value(name, declared["parse"] is _flag, rest)
        try:
            values[name] = declared["parse"](text)
        except ValueError:
            raise UserError(f"serve: --{name}={text}: must be {declared['wanted']}") from None
    return _checked(ServerFlags(**values))


def usage(width: int = 80) -> str:
    """Help text: each flag with its value, meaning and default, wrapped at ``width``."""
    lines = ["flags, named as in tensorflow_model_server:"]
    for name, item in _FIELDS.items():
        default = "" if item.default in (None, "", ()) else f" (default {item.default})"
        text = f"  --{name}={item.metadata['wanted']}: {item.metadata['help']}{default}"
        lines += textwrap.wrap(text, width, subsequent_indent=" " * 6, break_on_hyphens=False)
    return "\n".join(lines)


def _next_value(name: str, is_switch: bool, rest: list[str]) -> str:
    if is_switch and (not rest or rest[0].startswith("-")):
        return "true"
    if not rest or rest[0].startswith("--"):
        raise UserError(f"serve: --{name} needs a value: {_FIELDS[name].metadata['wanted']}")
    return rest.pop(0)


def _checked(flags: ServerFlags) -> ServerFlags:
    if flags.model_config_file:
        _check_ports(flags)
        return flags
    if not flags.model_base_path:
        raise UserError("serve: --model_base_path is missing: the folder that afm-ctr export writes versions to")
    if not flags.model_name:
        raise UserError("serve: --model_name must not be empty")
    _check_ports(flags)
    check_base_path(flags.model_base_path)
    return flags


def _check_ports(flags: ServerFlags) -> None:
    if flags.port is None and flags.rest_api_port is None:
        raise UserError("serve: --port and --rest_api_port are both off; nothing would be served")
    if flags.port is not None and flags.port == flags.rest_api_port:
        raise UserError(f"serve: --port and --rest_api_port are both {flags.port}; they must differ")


def check_base_path(path: str) -> Path:
    """The base path as a Path.

    Raises:
        UserError: the path is remote, does not exist, or is itself a version folder.
    """
    if "://" in path:
        raise UserError(f"serve: --model_base_path {path}: this local server reads local folders; {_ADVICE}")
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"serve: --model_base_path {path}: no such folder; afm-ctr export --export-base {path} creates it"
        )
    if (folder / "saved_model.pb").exists():
        raise UserError(
            f"serve: --model_base_path {path} is itself a version; give the folder above: {folder.absolute().parent}"
        )
    return folder
