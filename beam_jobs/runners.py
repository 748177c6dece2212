"""Runners of pipelines: takes Beam's options, and uses the in-process runner by default."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    FlinkRunnerOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner  # type: ignore[attr-defined]
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo
from apache_beam.runners.portability.fn_api_runner.worker_handlers import SubprocessSdkWorkerHandler, WorkerHandler
from apache_beam.runners.portability.portable_runner import JobServiceHandle

from afm_ctr.errors import UserError
from beam_jobs import files

# Input sizes in bytes below which this process counts rows itself: instead of several workers, and of a cluster.
_LITTLE, _LITTLE_FOR_CLUSTERS = 1 << 30, 32 << 20
# Default number of worker threads (more would wait for Python's GIL), and the input size in bytes that is worth them.
_THREADS, _WORTH_THREADS = 2, 32 << 20
_WORKER_OPTIONS = ("--direct_num_workers", "--direct_running_mode")
_LOG_LEVEL = "--default_sdk_harness_log_level"
_WORKER_PROCESS = "afm_ctr:env:worker_process:v1"
WORKER_LOST = "Channel closed prematurely."  # Beam's message


class _Options(PipelineOptions):
    """Beam's options with cached views: Beam makes about a hundred per pipeline, each with an argument parser."""

    def view_as(self, cls: Any) -> Any:
        views = self.__dict__.setdefault("_views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]


@WorkerHandler.register_environment(_WORKER_PROCESS, bytes)
class _WorkerProcess(SubprocessSdkWorkerHandler):
    """Beam's worker process, watched: Beam would wait forever for one that ended before it connected."""

    _closing = False

    def start_worker(self) -> None:
        super().start_worker()
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        self._closing = True
        super().close()

    def _watch(self) -> None:
        self.worker_thread.join()
        while not self._closing:  # further requests must fail, too
            self.control_conn.abort(RuntimeError(WORKER_LOST))
            self.data_conn.close()
            time.sleep(0.5)


class _Runner(FnApiRunner):
    """Starts worker processes by ``exec`` in Beam's shell: if the shell were killed, but not the worker, Beam would
    wait forever. Also quotes the interpreter's path."""

    def run_via_runner_api(self, pipeline_proto: Any, options: Any) -> Any:
        worker = f"exec {shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main"
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.SUBPROCESS_SDK:
                environment.urn, environment.payload = _WORKER_PROCESS, worker.encode()
        return super().run_via_runner_api(pipeline_proto, options)


class Engine:
    """Makes pipelines from Beam's command line options.

    Without ``--runner``, and for ``DirectRunner``, the in-process runner is used: ``DirectRunner`` itself may pass a
    pipeline to Prism, a program that it downloads. (``--runner=PrismRunner`` allows that.)

    Args:
        args: e.g. ``["--direct_num_workers=2", "--direct_running_mode=multi_processing"]``.

    Raises:
        UserError: an option that the in-process runner does not know, e.g. a misspelt one.
    """

    def __init__(self, args: Sequence[str] = ()) -> None:
        self._args = list(args)
        try:
            self._options = _Options(list(args))
            runner = self._options.view_as(StandardOptions).runner
        except SystemExit:
            # Beam parses with argparse, which has printed the reason.
            raise UserError(f"Beam does not take these options: {' '.join(args)}") from None
        # This process reads and writes files before its first pipeline, and hdfs:// and s3:// have options.
        files.set_options(self._options)
        self.in_process = runner is None or runner.rsplit(".", 1)[-1].lower() in _IN_PROCESS
        if self.in_process:
            self._refuse_unknown(args)
            self._options.view_as(StandardOptions).runner = None
            if not any(arg.startswith(_LOG_LEVEL) for arg in args):
                # By default every worker process logs its start and end.
                self._options.view_as(WorkerOptions).default_sdk_harness_log_level = "WARNING"
        direct = self._options.view_as(DirectOptions)
        self.workers_are_threads = self.in_process and direct.direct_running_mode != "multi_processing"
        self.workers = self._workers()

    def _workers(self) -> int | None:
        """The number of workers by the options; None if unknown (other runners may scale while they run)."""
        if self.in_process:
            return self._options.view_as(DirectOptions).direct_num_workers or os.cpu_count() or 1
        worker = self._options.view_as(WorkerOptions)
        parallelism = self._options.view_as(FlinkRunnerOptions).parallelism
        return max(worker.max_num_workers or 0, worker.num_workers or 0, parallelism or 0) or None

    def for_input(self, size: int) -> Engine:
        """The engine for logs of ``size`` bytes: two threads if the size is worth it, there are two cores and the
        options do not set workers."""
        threads = min(_THREADS, _cores())
        given = any(arg.startswith(_WORKER_OPTIONS) for arg in self._args)
        if not self.in_process or given or threads == 1 or size < _WORTH_THREADS:
            return self
        number, mode = _WORKER_OPTIONS
        return Engine([*self._args, f"{number}={threads}", f"{mode}=multi_threading"])

    def is_little(self, size: int) -> bool:
        """Whether merely reading ``size`` bytes is faster than starting a pipeline."""
        return size < (_LITTLE if self.in_process else _LITTLE_FOR_CLUSTERS)

    def pipeline(self) -> beam.Pipeline:
        """A new pipeline; its ``run`` executes it."""
        if not self.in_process:
            return beam.Pipeline(options=self._options)
        # Worker processes get the options only in this way.
        encoded = JobServiceHandle.encode_pipeline_options(self._options.get_all_options())
        provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
        return beam.Pipeline(_Runner(provision_info=ExtendedProvisionInfo(provision)), options=self._options)

    def _refuse_unknown(self, args: Sequence[str]) -> None:
        unknown: list[str] = []
        self._options.get_all_options(
            add_extra_args_fn=lambda parser: unknown.extend(parser.parse_known_args(list(args))[1])
        )
        if unknown:
            raise UserError(f"{unknown[0]} is not an option of this command or of Beam")


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_IN_PROCESS = {"directrunner", "direct", "fnapirunner", "switchingdirectrunner", "bundlebaseddirectrunner"}
