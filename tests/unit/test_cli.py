"""The command line: every mistake is one line and exit 2, every help text has an example."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from afm_ctr.cli import (
    commands,  # noqa: F401  (registers the sub-commands)
    main,
)
from afm_ctr.cli.app import app, each_input
from afm_ctr.errors import UserError
from serving.server.flags import usage

COMMANDS = [
    "make-logs",
    "prepare",
    "train",
    "evaluate",
    "predict",
    "export",
    "validate-export",
    "explain",
    "report",
    "serve",
    "score",
    "load-test",
    "doctor",
    "init",
    "infer-schema",
    "stats",
    "plan",
]


# Runs one command line after another, each with the streams and the exit code of a process of its own.
WITHOUT_TENSORFLOW = """
import contextlib, io, json, sys
sys.modules["tensorflow"] = sys.modules["keras"] = None
from afm_ctr.cli import main
for line in sys.stdin:
    sys.argv, out, err = ["afm-ctr", *json.loads(line)], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code or 0, out.getvalue(), err.getvalue()]), flush=True)
"""


class Ran(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ran]]:
    """Commands where TensorFlow is not installed, in a folder with a data set, a run ``m`` and a wrong ``c.yaml``."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "c.yaml").write_text("modle: afm\n")
    (folder / "manifest.json").touch()
    (folder / "m").mkdir()
    for place in (folder, folder / "m"):  # where a run without --config finds its own
        (place / "config.yaml").write_text("epochs: 2\n")
    environment = {name: value for name, value in os.environ.items() if name != "HOROVOD_RANK"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_TENSORFLOW],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def one(*arguments: str) -> Ran:
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
            return Ran(*json.loads(process.stdout.readline()))

        yield one
        process.stdin.close()


def test_every_command_is_there_and_no_other() -> None:
    assert sorted(command.name or "" for command in app.registered_commands) == sorted(COMMANDS)


def test_commands_are_listed_in_the_order_of_the_work() -> None:
    result = CliRunner().invoke(app, ["--help"])
    listed = re.findall(r"^│ ([a-z][a-z-]+) ", result.output, re.M)
    assert sorted(listed) == sorted(COMMANDS)
    work = ["infer-schema", "prepare", "train", "evaluate", "export", "serve", "score"]
    assert [name for name in listed if name in work] == work


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "d", "--model-dir", "m", "--config", "."], ".: is a folder; name a training config"),
        (["train", "--data", "d", "--model-dir", "m", "--config", "c.yaml"], "c.yaml: no such file"),
        (["train", "--data", "d", "--model-dir", "m", "--config", __file__], "d is not a prepared data set"),
        (["evaluate", "--data", "d", "--model-dir", "m"], "m holds no training run"),
        (["explain", "--data", "d", "--model-dir", "m"], "m holds no training run"),
        (["report", "--model-dir", "m"], "m holds no training run"),
        (["export", "--model-dir", "m", "--export-base", "b"], "m holds no training run"),
        (["predict", "--model-dir", "m", "--data", "d", "--output", "o"], "m holds no training run"),
        (["validate-export", "--export-dir", "e", "--model-dir", "m"], "m holds no training run"),
        (
            ["train", "--data", "d", "--model-dir", "m", "--from-checkpoint", "o"],
            "--from-checkpoint o: neither a run's folder",
        ),
    ],
)
def test_what_is_not_there_is_refused_before_tensorflow_is_loaded(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(**_: object) -> None:
        raise AssertionError("TensorFlow would have been loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOROVOD_RANK", raising=False)
    monkeypatch.setattr("afm_ctr.cli.model.load_tensorflow", load)
    monkeypatch.setattr("afm_ctr.cli.reports.load_tensorflow", load)
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError) and message in str(result.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train --model-dir m", "plan"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--config c.yaml", ["c.yaml", "modle", "'model'"]),
        ("--config c.yaml --set epochs=0", ["c.yaml", "modle", "'model'"]),
        ("--set epoch=3", ["--set epoch=3", "did you mean epochs"]),
        ("--set epochs", ["write key.path=value"]),
        ("--set optimizer.name=adamm", ["optimizer.name: 'adamm'", "did you mean 'adam'"]),
        ("--set model.name=afmm", ["there is no model 'afmm'; there are: afm, deep_afm, fm, lr"]),
        ("--set model.atention=4", ["model 'afm': atention: unknown key (did you mean 'attention'?)"]),
        ("--set model.name=deep_afm --set model.hidden=[0]", ["model 'deep_afm': hidden[0]: 0: must be greater"]),
        ("--set row_l2=much", ["row_l2: 'much': must be a valid number or a mapping of keys"]),
    ],
)
def test_a_wrong_config_is_refused_where_tensorflow_is_not(
    command: str, options: str, words: list[str], run: Callable[..., Ran]
) -> None:
    done = run(*command.split(), "--data", ".", *options.split())
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_eighty_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afm_ctr.cli.app.console.width", 80)  # a terminal's width is known when the program starts
    lines = CliRunner().invoke(app, [command, "--help"], terminal_width=80).output.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert [
        line for line in lines if re.search(r"--\S*…|\d{9}", line)
    ] == []  # a name that is cut, a bound nobody types


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"afm-ctr {command}" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "--data"),
        (["train", "--data", "d", "--model-dir", "m", "--resume"], "requires an argument (see afm-ctr train --help)"),
        (["nonsense"], "nonsense"),
        (
            ["score", "--target=t", "--schema=s", "--input=i", "--output=o", "--model-version=9223372036854775808"],
            "more than a version can be",
        ),
        (["make-logs", "--rows", "0", "--output", "x"], "--rows"),
        (["make-logs", "--rows", "ten", "--output", "x"], "integer"),
        (["predict", "--model-dir", "m", "--output", "o"], "--data"),
    ],
)
def test_usage_mistakes_are_one_line_and_exit_2(arguments: list[str], expected: str, run: Callable[..., Ran]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert expected in result.stderr
    assert result.stderr.startswith("afm-ctr: ")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["init", "--input", "a", "b", "--output", "o"], ["init", "--input", "a", "--input", "b", "--output", "o"]),
        (["prepare", "--input=a", "b", "--x", "2"], ["prepare", "--input=a", "--input", "b", "--x", "2"]),
        (["prepare", "--x", "2", "--input", "-a", "b"], ["prepare", "--x", "2", "--input", "-a", "--input", "b"]),
        (["predict", "--input", "a", "--input", "b"], ["predict", "--input", "a", "--input", "b"]),
        (["infer-schema", "--input"], ["infer-schema", "--input"]),
        (["score", "--input", "a", "b"], ["score", "--input", "a", "b"]),
        ([], []),
    ],
)
def test_input_takes_several_paths(given: list[str], taken: list[str]) -> None:
    assert each_input(given) == taken


def test_two_paths_after_input_are_both_read(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        rows = "".join(f"{name}{i % 7},{i % 2}\n" for i in range(60))
        (tmp_path / name).write_text("site,click\n" + rows)
    paths = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    result = CliRunner().invoke(app, ["infer-schema", "--input", *paths, "--json"])
    assert json.loads(result.output.splitlines()[-1])["files"] == 2


def test_prepare_says_where_rejected_lines_are(tmp_path: Path) -> None:
    log, schema, output = (tmp_path / name for name in ("a.csv", "schema.yaml", "data"))
    log.write_text("site,click\n" + "".join(f"s{i % 7},{i % 2}\n" for i in range(200)) + "s1\n")
    command = ["prepare", "--schema", schema, "--input", log, "--output", output, "--split", "tail:0.1/0.1"]
    CliRunner().invoke(app, ["infer-schema", "--input", str(log), "--output", str(schema)])
    result = CliRunner().invoke(app, [*map(str, command)])
    assert result.exit_code == 0, result.output
    assert f"each with its reason: {output}/rejects" in result.output.replace("\n", ""), result.output


@pytest.mark.parametrize("spelling", ["--model_name", "--model-name"])
def test_score_takes_the_name_in_either_spelling(spelling: str, tmp_path: Path) -> None:
    files = ["--schema", str(tmp_path / "absent.yaml"), "--input", "i", "--output", str(tmp_path / "o")]
    result = CliRunner().invoke(app, ["score", "--target", "localhost:1", *files, spelling, "other"])
    assert "absent.yaml" in str(result.exception)  # and not: no such option


@pytest.fixture
def no_tensorflow_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "afm_ctr.cli.serving.load_tensorflow", lambda: pytest.fail("TensorFlow would have been loaded")
    )


@pytest.mark.usefixtures("no_tensorflow_to_serve")
@pytest.mark.parametrize("flag", ["--model_config_file", "--ssl_config_file"])
def test_a_servers_file_is_refused_before_tensorflow_is_loaded(flag: str, tmp_path: Path) -> None:
    base = [] if flag == "--model_config_file" else [f"--model_base_path={tmp_path}"]
    result = CliRunner().invoke(app, ["serve", *base, "--port=8500", f"{flag}=/dev/zero"])
    assert isinstance(result.exception, UserError), result.exception
    assert f"{flag}=/dev/zero: it is a device" in str(result.exception)


@pytest.mark.usefixtures("no_tensorflow_to_serve")
@pytest.mark.parametrize("flag", ["--port", "--rest_api_port"])
def test_a_taken_port_is_said_before_tensorflow_is_loaded(flag: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        arguments = ["serve", f"--model_base_path={tmp_path}", "--port=0", f"{flag}={taken.getsockname()[1]}"]
        result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError) and f"{flag}={arguments[-1].split('=')[1]}" in str(
        result.exception
    )


def test_help_of_serve_lists_its_flags() -> None:
    result = CliRunner().invoke(app, ["serve", "--help"])
    assert usage() in result.output


def test_no_arguments_is_help(run: Callable[..., Ran]) -> None:
    result = run()
    assert result.returncode == 0
    assert "prepare" in result.stdout


def test_json_is_the_last_line_on_stdout(tmp_path: Path) -> None:
    target = tmp_path / "logs.tsv"
    command = ["-c", "from afm_ctr.cli import main; main()", "make-logs", "--rows", "50", "--output", str(target)]
    result = subprocess.run([sys.executable, *command, "--json"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["rows"] == 50
    assert len(target.read_bytes().splitlines()) == 50


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (errno.EACCES, 2, "afm-ctr: d/manifest.json: Permission denied\n"),
        (errno.ENAMETOOLONG, 2, "afm-ctr: d/manifest.json: File name too long\n"),
        (errno.ENOTDIR, 2, "afm-ctr: d/manifest.json: Not a directory\n"),
        (errno.ENOENT, 1, "Traceback"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    number: int, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(**_: object) -> None:
        raise OSError(number, os.strerror(number), "d/manifest.json")

    monkeypatch.setattr(sys.modules["afm_ctr.cli.main"], "app", refused)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code and capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_one_line_and_leaves_no_half_of_a_file(tmp_path: Path, number: signal.Signals) -> None:
    target = tmp_path / "logs.tsv.gz"
    command = [
        "-c",
        "from afm_ctr.cli import main; main()",
        "make-logs",
        "--rows",
        "30000000",
        "--output",
        str(target),
    ]
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.iterdir()):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.strip() == "afm-ctr: stopped"
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_starts_without_tensorflow() -> None:
    code = (
        "import sys; from afm_ctr.cli import commands; "
        "assert not {'numpy', 'pydantic', 'tensorflow', 'pyarrow'} & sys.modules.keys(); "
        "import serving.client, afm_ctr.schema; "
        "assert not {'tensorflow', 'keras', 'apache_beam', 'horovod'} & sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_missing_extra_is_named_with_its_remedy(run: Callable[..., Ran]) -> None:
    result = run("export", "--model-dir", "m", "--export-base", "b")
    assert result.returncode == 2
    assert "pip install '.[train]'" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_doctor_prints_its_remedies_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from afm_ctr import doctor
    from afm_ctr.cli import data

    findings = [
        doctor.Finding(True, "numpy", "2.0"),
        doctor.Finding(False, "tensorflow", "missing: [training]", "pip install '.[train]'", optional=True),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    data.doctor()
    said = capsys.readouterr().out
    assert "pip install '.[train]'" in said and "missing: [training]" in said and "in the project's folder" in said


def test_a_library_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    from afm_ctr import doctor

    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.1)
    done = doctor.run_code("import time; time.sleep(60)")
    assert done.returncode == 124 and done.stderr == "no answer within 0.1 s"
    monkeypatch.setattr(doctor, "run_code", lambda code: done)
    assert doctor.pooling().state == "TensorFlow form: no answer within 0.1 s"


def test_remedies_need_no_public_index(monkeypatch: pytest.MonkeyPatch) -> None:
    from afm_ctr import doctor

    monkeypatch.setattr(doctor, "version_of", lambda distribution: None)
    remedies = {finding.remedy for finding in doctor.examine() if finding.remedy.startswith("pip")}
    assert remedies == {
        "pip install .",
        "pip install '.[cli]'",
        "pip install '.[train]'",
        "pip install '.[beam]'",
        "pip install '.[serving]'",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", "data", "--model-dir", "gs://b/run"],
        ["prepare", "--schema", "s3://b/schema.yaml", "--input", "a", "--output", "b"],
        ["predict", "--model-dir", "run", "--data", "data", "--output", "s3://b/scores.jsonl"],
        ["score", "--schema", "schema.yaml", "--input", "hdfs://b/a.csv", "--output", "b"],
        ["stats", "abfss://b/data"],
        ["stats", "data", "--baseline", "s3://b/data"],
        ["init", "--input", "a", "--output", "s3://b"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_path_that_must_be_local_is_refused_where_it_is_read(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert re.search(r"(gs|s3|hdfs|abfss)://b\S* is not a local file.*copy it first", str(result.exception))


@pytest.mark.parametrize(
    "arguments",
    [
        ["make-logs", "--rows", "5", "--output", ""],
        ["train", "--data", "data", "--model-dir="],
        ["stats", ""],
        ["prepare", "--schema", "schema.yaml", "--input", "a", "--output", ""],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_empty_path_is_not_this_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("schema.yaml").write_text(
        "name: t\nformat: {kind: delimited}\nlabel: {column: y}\n"
        "fields: [{name: a, kind: categorical, encoding: {kind: vocabulary}}]\n"
    )
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError) and " is empty" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["schema.yaml"]
