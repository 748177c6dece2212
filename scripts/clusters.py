"""Flink and Spark clusters on this machine, for trying ``afm-ctr prepare``: small, on loopback, stopped afterwards.

    .venv/bin/python scripts/clusters.py fetch                          # once: 700 MB, then from the cache
    .venv/bin/python scripts/clusters.py run flink -- .venv/bin/afm-ctr prepare --schema …
    .venv/bin/python scripts/clusters.py start spark                    # prints its web page and Beam's options
    .venv/bin/python scripts/clusters.py stop

A Flink cluster is a session cluster of one job manager and two task managers, a Spark cluster a standalone master
and two workers. Each comes with Beam's job server and a pool of Python workers (``EXTERNAL``). ``run`` adds Beam's
options to the command.

It needs Java 11 or 17, and ``fetch`` also needs Maven and this interpreter's pip. Flink and Spark come from PyPI as
``apache-flink-libraries`` and ``pyspark``; the job servers are assembled from Beam's libraries in Maven Central.
Versions and SHA-256 are below. The cache is the ``clusters`` folder in that of ``scripts/build_native.py``. Exit
code: that of the command of ``run``, else 0, 1 a process did not start, 2 a required tool is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from building import Missing, cache, locked, tool, trusted

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from afm_ctr.io.files import sha256_of
from afm_ctr.io.ownership import record_digest

HOST = "127.0.0.1"
BEAM_JAVA = "2.62.0"


@dataclass(frozen=True)
class Kind:
    """An engine and its sources.

    Attributes:
        package: on PyPI; its source distribution contains the engine's jars.
        jars: their folder in it.
        without: prefixes of the names of jars that are not needed here.
        runner: Beam's library for it.
        digest: SHA-256 over the names and SHA-256 of all jars of the job server.
        main: the job server's main class.
    """

    package: str
    version: str
    sha256: str
    jars: str
    without: tuple[str, ...]
    runner: str
    digest: str
    main: str


KINDS = {
    "flink": Kind(
        "apache-flink-libraries",
        "1.19.3",
        "4a58e3a1fb7d83340bc96b6c080624c6d792d69fae5d294b96224775204a9c60",
        "deps/lib",
        ("flink-cep", "flink-csv", "flink-json", "flink-scala", "flink-table"),
        "beam-runners-flink-1.19",
        "54d55a9bd4c3c3c9f5ccae688fed6b1a16424cb52ecf00f69609862781102f58",
        "org.apache.beam.runners.flink.FlinkJobServerDriver",
    ),
    "spark": Kind(
        "pyspark",
        "3.5.9",
        "ea27adc39ddac9413b8951e45aa748cbed6c785971b81386efc41938f6243d93",
        "deps/jars",
        (
            *("arpack", "blas", "breeze", "datanucleus", "datasketches", "derby", "hive", "kubernetes", "lapack"),
            *("libthrift", "mesos", "orc", "rocksdbjni", "spark-hive", "spark-mllib", "spark-kubernetes", "spire"),
        ),
        "beam-runners-spark-3",
        "80dd34d446da37fac836aa903912e77762a2131a1c66c6a2098699223bf65d40",
        "org.apache.beam.runners.spark.SparkJobServerDriver",
    ),
}

# Options that Flink and Spark need under Java 17, and options that keep a Java process small.
_OPEN = "lang lang.invoke lang.reflect io net nio text time util util.concurrent util.concurrent.atomic"
_JAVA = [
    *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPEN.split()),
    *(
        f"--add-opens=java.base/sun.{name}=ALL-UNNAMED"
        for name in ("nio.ch", "nio.cs", "security.action", "util.calendar")
    ),
    *("-XX:+IgnoreUnrecognizedVMOptions", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
    "-Djava.net.preferIPv4Stack=true",
]

# Beam's own pool listens on all interfaces. It also identifies workers by ids that every task manager numbers from
# the start, so that one task manager could stop another's worker; here a worker ends with its own connection.
_POOL = """
import signal, subprocess, sys, grpc
from concurrent.futures import ThreadPoolExecutor
from apache_beam.portability.api import beam_fn_api_pb2 as api, beam_fn_api_pb2_grpc as services
WORK = "import sys; from apache_beam.runners.worker.sdk_worker import SdkHarness as H; "
WORK += "H(sys.argv[1], worker_id=sys.argv[2]).run()"
workers = []
class Pool(services.BeamFnExternalWorkerPoolServicer):
    def StartWorker(self, request, context):
        command = [sys.executable, "-c", WORK, request.control_endpoint.url, request.worker_id]
        workers.append(subprocess.Popen(command))
        return api.StartWorkerResponse()
    def StopWorker(self, request, context):
        return api.StopWorkerResponse()
server = grpc.server(ThreadPoolExecutor(4))
services.add_BeamFnExternalWorkerPoolServicer_to_server(Pool(), server)
server.add_insecure_port(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: server.stop(0))
server.start()
server.wait_for_termination()
for worker in workers:
    worker.terminate()
for worker in workers:
    try:
        worker.wait(5)
    except subprocess.TimeoutExpired:
        worker.kill()
"""


def home() -> Path:
    """The cache folder of the engines."""
    return cache() / "clusters"


def jars(name: str) -> Path:
    """The folder with the jars of an engine."""
    kind = KINDS[name]
    return home() / f"{name}-{kind.version}"


def job_server(name: str) -> Path:
    """The jar of Beam's job server for an engine."""
    return home() / f"beam-{BEAM_JAVA}-{name}-{KINDS[name].version}-job-server.jar"


def unavailable(name: str) -> str | None:
    """Why a cluster cannot be started; ``None``: it can."""
    if shutil.which("java") is None:
        return "Java is not on the PATH"
    if not (jars(name).is_dir() and job_server(name).is_file()):
        return f"{name} is not in {home()}: `python scripts/clusters.py fetch` downloads it"
    return None


def fetch(name: str) -> None:
    """Download an engine and Beam's job server for it into the cache, unless they are there.

    Raises:
        Missing: a download failed, or has the wrong digest.
    """
    tool("java", "Flink and Spark run on it: install OpenJDK 17 (Debian: openjdk-17-jre-headless)")
    home().mkdir(parents=True, exist_ok=True)
    with locked(home() / name):
        if not jars(name).is_dir():
            _fetch_jars(name)
        if not trusted(job_server(name)):
            _fetch_job_server(name)


def _fetch_jars(name: str) -> None:
    kind = KINDS[name]
    print(f"{kind.package} {kind.version} …", flush=True)
    with tempfile.TemporaryDirectory(dir=home(), prefix=".tmp-") as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        pip += ["--no-build-isolation", "--retries", "1", "--dest", folder, f"{kind.package}=={kind.version}"]
        _call(pip, Path(folder))
        (archive,) = Path(folder).glob("*.tar.gz")
        if sha256_of(archive) != kind.sha256:
            raise Missing(f"{archive.name} is not what it was: its SHA-256 is {sha256_of(archive)}")
        found = Path(folder, "jars")
        found.mkdir()
        with tarfile.open(archive) as content:
            for member in content:
                path = Path(member.name)
                there = path.parent.as_posix().endswith(kind.jars) and path.suffix == ".jar" and member.isfile()
                if there and not path.name.startswith(kind.without):
                    stream = content.extractfile(member)
                    assert stream is not None
                    with stream, (found / path.name).open("wb") as sink:
                        shutil.copyfileobj(stream, sink)
        found.rename(jars(name))


def _fetch_job_server(name: str) -> None:
    kind = KINDS[name]
    tool("mvn", "it fetches Beam's job server (Debian: maven)")
    print(f"Beam's job server {BEAM_JAVA} for {name} …", flush=True)
    with tempfile.TemporaryDirectory(dir=home(), prefix=".tmp-") as folder:
        Path(folder, "pom.xml").write_text(_pom(kind.runner))
        mvn = ["mvn", "--batch-mode", "--quiet", "-Dmaven.wagon.http.retryHandler.count=1"]
        copy = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies"
        _call([*mvn, copy, "-DincludeScope=runtime", "-DoutputDirectory=jars"], Path(folder))
        found = sorted(Path(folder, "jars").glob("*.jar"))
        digest = hashlib.sha256("".join(f"{path.name} {sha256_of(path)}\n" for path in found).encode()).hexdigest()
        if digest != kind.digest:
            raise Missing(f"the {len(found)} jars of {kind.runner} are not what they were: their digest is {digest}")
        whole = Path(folder, "whole.jar")
        more_jars: list[Path] = []
        if name == "spark":
            more_jars = sorted(jars(name).glob("*.jar"))
            found = [path for path in found if not path.name.startswith("slf4j-api")]  # Spark's is a later one
        _one_jar(found, kind.main, more_jars, whole)
        whole.rename(job_server(name))
        record_digest(job_server(name))


def _pom(runner: str) -> str:
    def dependency(group: str, artifact: str, version: str) -> str:
        where = f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        return f"<dependency>{where}</dependency>"

    wanted = dependency("org.apache.beam", runner, BEAM_JAVA)
    if "flink" in runner:
        wanted += dependency("org.slf4j", "slf4j-jdk14", "1.7.30")
    return (
        "<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>job-server</artifactId>"
        f"<version>1</version><dependencies>{wanted}</dependencies></project>"
    )


def _one_jar(parts: Sequence[Path], main: str, more_jars: Sequence[Path], path: Path) -> None:
    """Merge jars into one; the first of several files with one name counts, but lists of services are joined."""
    services: dict[str, list[bytes]] = {}
    # A jar's index would make Java skip the other jars.
    seen = {"META-INF/MANIFEST.MF", "META-INF/INDEX.LIST"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as whole:
        manifest = ["Manifest-Version: 1.0", f"Main-Class: {main}", "Multi-Release: true"]
        if more_jars:
            # Relative to this jar: Java ignores absolute ones.
            manifest.append(" ".join(["Class-Path:", *(f"{jar.parent.name}/{jar.name}" for jar in more_jars)]))
        folded = [
            line[:70] + "".join(f"\n {line[at : at + 69]}" for at in range(70, len(line), 69)) for line in manifest
        ]
        whole.writestr("META-INF/MANIFEST.MF", "\n".join(folded) + "\n")
        for part in parts:
            with zipfile.ZipFile(part) as content:
                for name in content.namelist():
                    if name.startswith("META-INF/services/") and not name.endswith("/"):
                        # Beam's file system for gs:// fails to load with Spark's jars; nothing in Java reads files.
                        if "google-cloud-platform" not in part.name:
                            services.setdefault(name, []).append(content.read(name))
                    elif name not in seen and not name.endswith(("/", ".SF", ".DSA", ".RSA")):
                        seen.add(name)
                        whole.writestr(name, content.read(name))
        for name, lists in services.items():
            whole.writestr(name, b"\n".join(lists))


def _call(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        raise Missing(f"{command[0]} did not end within 15 minutes") from None
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Missing(f"`{shlex.join(command[:4])} …` failed: {said[0] if said else done.returncode}")


@dataclass
class Cluster:
    """A running cluster.

    Attributes:
        engine: ``flink`` or ``spark``.
        web: address of its web page.
        beam_args: Beam's options for it.
        processes: id and start time of each process by name, as ids are reused.
    """

    engine: str
    folder: Path
    web: str = ""
    beam_args: list[str] = field(default_factory=list)
    processes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def save(self) -> None:
        (self.folder / "cluster.json").write_text(json.dumps({**vars(self), "folder": str(self.folder)}))

    @classmethod
    def load(cls, folder: Path) -> Cluster:
        found = json.loads((folder / "cluster.json").read_text())
        return cls(**{**found, "folder": folder})

    def log(self, name: str) -> str:
        """The output of a process."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def launch(self, name: str, command: Sequence[object], **environment: str) -> None:
        """Start a process that outlives this one."""
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        # Files of a killed process are removed with the cluster.
        places = {
            "TMPDIR": str(temporary),
            "SPARK_LOCAL_DIRS": str(temporary),
            "JAVA_TOOL_OPTIONS": f"-Djava.io.tmpdir={temporary} -XX:-UsePerfData",
        }
        with (self.folder / f"{name}.log").open("ab") as sink:
            process = subprocess.Popen(
                [*map(str, command)],
                cwd=self.folder,
                env={**os.environ, **places, **environment},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes[name] = (process.pid, _started(process.pid) or "")
        self.save()

    def alive(self, name: str) -> bool:
        pid, started = self.processes[name]
        return _started(pid) == started

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process of this cluster."""
        if self.alive(name):
            os.kill(self.processes[name][0], number)

    def wait_for(self, what: str, test: Callable[[], bool], seconds: float = 180) -> None:
        """Wait until a condition holds.

        Raises:
            RuntimeError: a process ended, or it takes too long.
        """
        end = time.monotonic() + seconds
        while not test():
            ended = [name for name in self.processes if not self.alive(name)]
            if ended or time.monotonic() > end:
                name = (ended or list(self.processes)[-1:])[0]
                last = "\n".join(self.log(name).splitlines()[-15:])
                raise RuntimeError(
                    f"{self.engine}: {what}: {'ended' if ended else 'not within time'}: {name}\n{last}"
                )
            time.sleep(0.2)

    def stop(self) -> None:
        """End its processes, the last one first."""
        for number, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
            for name in reversed(self.processes):
                self.kill(name, number)
            end = time.monotonic() + seconds
            while any(map(self.alive, self.processes)) and time.monotonic() < end:
                time.sleep(0.1)
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        (self.folder / "cluster.json").unlink(missing_ok=True)


def _started(pid: int) -> str | None:
    """The start time of a process, in the system's units; ``None``: it does not exist, or has ended."""
    with suppress(ChildProcessError):  # most are children of this process
        os.waitpid(pid, os.WNOHANG)
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state[0] == "Z" else state[19]


def _ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind((HOST, 0))
    found = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return found


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def start(name: str, folder: Path, python: str = sys.executable) -> Cluster:
    """Start a cluster, its logs and state in ``folder``.

    Args:
        python: the interpreter of the pool's workers.

    Raises:
        Missing: it was not downloaded, or a cluster runs there.
        RuntimeError: it does not start.
    """
    if why := unavailable(name):
        raise Missing(why)
    if (folder / "cluster.json").exists():
        raise Missing(f"a cluster runs in {folder}: stop it first")
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(name, folder.resolve())
    try:
        _START[name](cluster)
        _start_workers(cluster, python)
    except BaseException:
        cluster.stop()
        raise
    return cluster


def _start_flink(cluster: Cluster) -> None:
    rpc, web, port, artifacts = _ports(4)
    conf = cluster.folder / "conf"
    conf.mkdir(exist_ok=True)
    options = {
        "jobmanager.rpc.address": HOST,
        "jobmanager.rpc.port": rpc,
        "jobmanager.bind-host": HOST,
        "taskmanager.bind-host": HOST,
        "taskmanager.host": HOST,
        "rest.address": HOST,
        "rest.bind-address": HOST,
        "rest.port": web,
        "io.tmp.dirs": cluster.folder / "tmp",
        "web.upload.dir": cluster.folder / "tmp",
        "taskmanager.numberOfTaskSlots": 1,
        "taskmanager.cpu.cores": 1,
        "taskmanager.memory.framework.heap.size": "128m",
        "taskmanager.memory.framework.off-heap.size": "128m",
        "taskmanager.memory.task.heap.size": "256m",
        "taskmanager.memory.task.off-heap.size": "0",
        "taskmanager.memory.managed.size": "64m",
        "taskmanager.memory.network.min": "128m",
        "taskmanager.memory.network.max": "128m",
        "taskmanager.memory.jvm-metaspace.size": "512m",
        "taskmanager.memory.jvm-overhead.min": "192m",
        "taskmanager.memory.jvm-overhead.max": "192m",
        # A lost worker is noticed within seconds.
        "heartbeat.interval": 2000,
        "heartbeat.timeout": 12000,
    }
    (conf / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in options.items()))
    (conf / "log4j.properties").write_text(_LOG4J)
    java = ["java", *_JAVA, f"-Dlog4j.configurationFile={conf / 'log4j.properties'}", "-cp", f"{jars('flink')}/*"]
    runtime, configured = "org.apache.flink.runtime", ["--configDir", conf]
    manager = f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint"
    cluster.launch("jobmanager", [*java, "-Xmx400m", manager, *configured, "--executionMode", "cluster"])
    for number in (1, 2):
        command = [*java, "-Xmx384m", "-XX:MaxMetaspaceSize=512m", f"{runtime}.taskexecutor.TaskManagerRunner"]
        cluster.launch(
            f"taskmanager-{number}", [*command, *configured, f"-Dtaskmanager.resource-id=taskmanager-{number}"]
        )
    cluster.web = f"http://{HOST}:{web}"
    arguments = [f"--job-host={HOST}", f"--job-port={port}", f"--artifact-port={artifacts}", "--expansion-port=-1"]
    arguments += [f"--artifacts-dir={cluster.folder / 'artifacts'}", f"--flink-master={HOST}:{web}"]
    cluster.launch("job-server", ["java", *_JAVA, "-Xmx512m", "-jar", job_server("flink"), *arguments])
    cluster.beam_args = ["--runner=PortableRunner", f"--job_endpoint={HOST}:{port}", "--parallelism=2"]
    cluster.wait_for("its web page", lambda: _listens(web))
    cluster.wait_for("Beam's job server", lambda: _listens(port))
    cluster.wait_for("its task managers", lambda: cluster.log("jobmanager").count("Registering TaskManager") >= 2)


def _start_spark(cluster: Cluster) -> None:
    rpc, web, port, artifacts = _ports(4)
    conf = cluster.folder / "log4j.properties"
    conf.write_text(_LOG4J)
    java = ["java", *_JAVA, f"-Dlog4j2.configurationFile=file:{conf}"]
    environment = {"SPARK_LOCAL_IP": HOST, "SPARK_HOME": str(cluster.folder), "SPARK_SCALA_VERSION": "2.12"}
    home = cluster.folder / "jars"
    if not home.exists():
        home.symlink_to(jars("spark"))
    engine = [*java, "-Xmx256m", "-cp", f"{home}/*"]
    deploy = "org.apache.spark.deploy"
    master = f"spark://{HOST}:{rpc}"
    arguments = [f"{deploy}.master.Master", "--host", HOST, "--port", rpc, "--webui-port", web]
    cluster.launch("master", [*engine, *arguments], **environment)
    cluster.wait_for("its master", lambda: _listens(rpc))
    for number in (1, 2):
        arguments = [f"{deploy}.worker.Worker", "--host", HOST, "--cores", 1, "--memory", "640m", "--webui-port", 0]
        arguments += ["--work-dir", cluster.folder / f"work-{number}", master]
        cluster.launch(f"worker-{number}", [*engine, *arguments], **environment)
    cluster.web = f"http://{HOST}:{web}"
    driver = {
        "spark.driver.host": HOST,
        "spark.driver.bindAddress": HOST,
        "spark.executor.memory": "640m",
        "spark.executor.cores": 1,
        "spark.default.parallelism": 2,
        "spark.ui.enabled": "false",
        "spark.network.timeout": "60s",
        "spark.executor.heartbeatInterval": "3s",
    }
    arguments = [f"--job-host={HOST}", f"--job-port={port}", f"--artifact-port={artifacts}", "--expansion-port=-1"]
    arguments += [f"--artifacts-dir={cluster.folder / 'artifacts'}", f"--spark-master-url={master}"]
    properties = [f"-D{key}={value}" for key, value in driver.items()]
    cluster.launch(
        "job-server", [*java, *properties, "-Xmx768m", "-jar", job_server("spark"), *arguments], **environment
    )
    # Otherwise Spark's own jars would be sent to each executor too.
    staged = f"--files_to_stage={job_server('spark')}"
    cluster.beam_args = ["--runner=PortableRunner", f"--job_endpoint={HOST}:{port}", staged]
    cluster.wait_for("Beam's job server", lambda: _listens(port))
    cluster.wait_for("its workers", lambda: cluster.log("master").count("Registering worker") >= 2)


_START = {"flink": _start_flink, "spark": _start_spark}
_LOG4J = """
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
appender.console.name = console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss} %-5p %c{1} %m%n
"""


def _start_workers(cluster: Cluster, python: str) -> None:
    (port,) = _ports(1)
    cluster.launch("pool", [python, "-c", _POOL, f"{HOST}:{port}"])
    cluster.beam_args += ["--environment_type=EXTERNAL", f"--environment_config={HOST}:{port}"]
    cluster.save()
    cluster.wait_for("its pool of Python workers", lambda: _listens(port))


@contextmanager
def running(name: str, folder: Path, python: str = sys.executable) -> Iterator[Cluster]:
    """A cluster while the block runs."""
    cluster = start(name, folder, python)
    try:
        yield cluster
    finally:
        cluster.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for logs and state; by default one in the cache")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="download what is not there").add_argument(
        "engine", nargs="*", choices=[*KINDS, []]
    )
    commands.add_parser("start", help="start a cluster").add_argument("engine", choices=KINDS)
    commands.add_parser("stop", help="stop the cluster that was started")
    run = commands.add_parser("run", help="start a cluster, run a command with Beam's options for it, stop it")
    run.add_argument("engine", choices=KINDS)
    run.add_argument("rest", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    given = parser.parse_args(arguments)
    folder = given.folder or home() / "running"
    try:
        if given.command == "fetch":
            for name in given.engine or KINDS:
                fetch(name)
        elif given.command == "stop":
            if not (folder / "cluster.json").exists():
                raise Missing(f"no cluster runs in {folder}")
            Cluster.load(folder).stop()
        else:
            fetch(given.engine)
            if given.command == "run":
                return _run(given.engine, folder, given.rest[given.rest[:1] == ["--"] :])
            cluster = start(given.engine, folder)
            print(f"{cluster.web}\n{shlex.join(cluster.beam_args)}")
    except Missing as error:
        print(f"clusters: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"clusters: {error}", file=sys.stderr)
        return 1
    return 0


def _run(engine: str, folder: Path, command: list[str]) -> int:
    if not command:
        raise Missing("name a command after --")
    with running(engine, folder) as cluster:
        print(f"{engine}: {cluster.web}", flush=True)
        return subprocess.call([*command, *cluster.beam_args])


if __name__ == "__main__":
    sys.exit(main())
