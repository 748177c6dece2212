"""The server: ports, model versions, both APIs, and graceful shutdown."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from afm_ctr.errors import UserError
from serving.server.flags import ServerFlags, check_base_path
from serving.server.model_config import ModelConfig, check_labels, read_model_config
from serving.server.ports import HeldPort, make_grpc_server, open_grpc
from serving.server.tls import server_credentials
from serving.server.versions import VersionWatcher

log = logging.getLogger("serving.server")

_GRACE_SECONDS = 10.0


class LocalServer:
    """A model server in this process. Binds its ports at once and opens them when the model is loaded.

    Args:
        flags: As on the command line; port 0 takes any free port.
        host: Interface to listen on; default: the flag ``host``, 127.0.0.1 unless set.

    Attributes:
        grpc_port: The gRPC port; None: off.
        rest_port: The REST port; None: off.
        watcher: Holds the model's versions.

    Raises:
        UserError: no base path, or a port is taken.

    Example:
        >>> with LocalServer(ServerFlags(model_base_path="models/afm", model_name="afm", port=0)) as server:
        ...     client = Client(f"localhost:{server.grpc_port}")
    """

    def __init__(self, flags: ServerFlags, host: str | None = None):
        config = _config_of(flags)
        base_path = check_base_path(config.base_path)
        self.flags = flags = dataclasses.replace(flags, model_name=config.name, model_base_path=config.base_path)
        self._config = config
        self._credentials = server_credentials(flags.ssl_config_file) if flags.ssl_config_file else None
        self._stopping = threading.Event()
        self.host = host = host or flags.host
        # Nothing here loads TensorFlow, which takes seconds: a taken port should fail at once.
        self._held_grpc = None if flags.port is None else HeldPort(host, flags.port, "--port")
        self._held_rest = (
            None if flags.rest_api_port is None else HeldPort(host, flags.rest_api_port, "--rest_api_port")
        )
        self.grpc_port = self._held_grpc and self._held_grpc.port
        self.rest_port = self._held_rest and self._held_rest.port
        self._grpc: grpc.Server | None = None
        self._rest: Any = None
        self._health: Any = None

        def load(version: int, folder: Path) -> Any:
            from serving.server.handlers import predict_on
            from serving.server.models import Servable, warm_up

            servable = Servable(flags.model_name, version, folder, flags)
            try:
                count = warm_up(servable, predict_on) if flags.enable_model_warmup else 0
            except BaseException:
                servable.close()
                raise
            log.info("%s version %d: %d warm-up requests", flags.model_name, version, count)
            return servable

        self.watcher = VersionWatcher(
            flags.model_name, base_path, load, flags.file_system_poll_wait_seconds, config.policy, config.labels
        )

    def start(self) -> None:
        """Load the newest version, then open the ports. Without any version, answers NOT_FOUND until one appears.

        Raises:
            UserError: a port was taken in the meantime.
        """
        from serving.server.grpc_service import Health, add_services
        from serving.server.http_server import RestServer
        from serving.server.rest import RestApi

        self.watcher.start()
        if self.flags.model_config_file and self.flags.model_config_file_poll_wait_seconds:
            threading.Thread(target=self._follow_config, name="model-config", daemon=True).start()
        if self._held_grpc is not None:
            self._grpc = make_grpc_server(self.flags.grpc_max_threads, self.flags.grpc_channel_arguments)
            add_services(self._grpc, self.watcher)
            if self.flags.enable_grpc_healthcheck_service:
                self._health = Health()
                self._health.add_to(self._grpc)
                threading.Thread(target=self._report_health, name="health", daemon=True).start()
            open_grpc(self._grpc, self.host, self._held_grpc.release(), self._credentials)
        if self._held_rest is not None:
            port = self._held_rest.release()
            self._rest = RestServer(self.host, port, self.flags.rest_api_num_threads, RestApi(self.watcher))
            self._rest.start()

    def _report_health(self) -> None:
        if self.watcher.wait_available():
            self._health.set(True)

    def _follow_config(self) -> None:
        problem = ""
        while not self._stopping.wait(self.flags.model_config_file_poll_wait_seconds):
            try:
                new, old = read_model_config(self.flags.model_config_file), self._config
                if (new.name, new.base_path) != (old.name, old.base_path):
                    raise UserError(f"serve: {self.flags.model_config_file}: the model itself cannot change; restart")
                if new != old:
                    check_labels(old.labels, new.labels, self.watcher.available(), new.name)
                    self.watcher.configure(new.policy, new.labels)
                    self._config = new
                    log.info("%s: new version policy and labels: %s", new.name, dict(new.labels))
                problem = ""
            except UserError as error:
                if problem != str(error):  # log it once, not at every poll
                    log.error("%s; keeping the previous settings", error)
                problem = str(error)

    def stop(self, grace: float = _GRACE_SECONDS) -> None:
        """Stop accepting requests, give those in flight ``grace`` seconds, and unload."""
        self._stopping.set()
        if self._health is not None:
            self._health.set(False)
        # Both APIs at once: neither accepts requests while the other finishes its own.
        finished = None if self._grpc is None else self._grpc.stop(grace)
        if self._rest is not None:
            self._rest.stop(grace)
        if finished is not None:
            finished.wait()
        for held in (self._held_grpc, self._held_rest):
            if held is not None:
                held.release()
        self.watcher.stop()

    def __enter__(self) -> LocalServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _config_of(flags: ServerFlags) -> ModelConfig:
    if not flags.model_config_file:
        return ModelConfig(flags.model_name, flags.model_base_path)
    config = read_model_config(flags.model_config_file)
    if config.labels and not flags.allow_version_labels_for_unavailable_models:
        raise UserError(
            f"serve: {flags.model_config_file}: version_labels at start name versions that are not loaded yet: "
            "give --allow_version_labels_for_unavailable_models=true, as with the real server"
        )
    return config


def run(flags: ServerFlags, begin: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM.

    Args:
        begin: called when flags and files have been checked, before TensorFlow is imported.

    Returns:
        ``{"model_name", "versions", "grpc_port", "rest_port"}``.

    Raises:
        UserError: no base path, or a port is taken.
    """
    _show_log()
    server = LocalServer(flags)
    begin()
    stopping = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
    flags = server.flags
    try:
        if not stopping.is_set():
            log.info("%s", _who_may_call(server.host))
            server.start()
            log.info("%s", _ready_line(server))
        waiting = server.watcher.version is None
        while not stopping.wait(0.2):
            if waiting and server.watcher.version is not None:
                waiting = False
                log.info("%s", _ready_line(server))
    finally:
        log.info("stopping")
        server.stop()
    return {
        "model_name": flags.model_name,
        "versions": [item.version for item in server.watcher.states()],
        "grpc_port": server.grpc_port,
        "rest_port": server.rest_port,
    }


def _who_may_call(host: str) -> str:
    if host == "localhost" or host == "::1" or host.startswith("127."):
        return f"listening on {host}, for this machine only; for others: --host=0.0.0.0"
    return f"listening on {host}: anyone who can reach it may send requests, there is no authentication"


def _ready_line(server: LocalServer) -> str:
    name, version = server.flags.model_name, server.watcher.version
    state = f"version {version} is ready" if version is not None else "no version is loaded yet"
    places = []
    if server.grpc_port is not None:
        places.append(f"gRPC localhost:{server.grpc_port}")
    if server.rest_port is not None:
        places.append(f"REST http://localhost:{server.rest_port}/v1/models/{name}")
    return f"{name}: {state}; {', '.join(places)}"


def _show_log() -> None:
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it logs several lines at every load
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if not log.handlers:
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
