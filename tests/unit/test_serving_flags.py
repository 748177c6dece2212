"""The server's command line: the real server's names, and a clear line for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from afm_ctr.errors import UserError
from serving.server.__main__ import main
from serving.server.flags import parse, usage


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(tmp_path)


def test_both_spellings_and_defaults(base: str) -> None:
    flags = parse(["--model_base_path", base, "--model_name=afm", "--rest_api_port", "8501"])
    assert (flags.model_base_path, flags.model_name, flags.port, flags.rest_api_port) == (base, "afm", 8500, 8501)
    assert flags.file_system_poll_wait_seconds == 1.0
    assert parse([f"--model_base_path={base}"]).rest_api_port is None


def test_hyphens_in_a_name_are_underscores(base: str) -> None:
    flags = parse([f"--model-base-path={base}", "--model-name", "shop", "--rest-api-port=8501"])
    assert (flags.model_name, flags.rest_api_port) == ("shop", 8501)
    with pytest.raises(UserError, match="--enable_batching is a flag of TF Serving"):
        parse(["--enable-batching=true"])


def test_this_machine_alone_may_call_unless_a_host_is_given(base: str) -> None:
    assert parse([f"--model_base_path={base}"]).host == "127.0.0.1"
    for host in ("0.0.0.0", "::", "::1", "localhost", "10.1.2.3"):
        assert parse([f"--model_base_path={base}", f"--host={host}"]).host == host


def test_port_zero_switches_an_api_off_as_in_the_real_server(base: str) -> None:
    flags = parse(["--model_base_path", base, "--port=0", "--rest_api_port=9000"])
    assert flags.port is None
    assert flags.rest_api_port == 9000


def test_switches_and_channel_arguments(base: str) -> None:
    flags = parse(
        [
            "--enable_model_warmup=false",
            "--enable_grpc_healthcheck_service",
            "--model_base_path",
            base,
            "--grpc_channel_arguments=grpc.max_receive_message_length=1000,grpc.primary_user_agent=x",
        ]
    )
    assert not flags.enable_model_warmup
    assert flags.enable_grpc_healthcheck_service
    assert dict(flags.grpc_channel_arguments) == {
        "grpc.max_receive_message_length": 1000,
        "grpc.primary_user_agent": "x",
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--enable_batching=true"], "--enable_batching is a flag of TF Serving .* docker compose"),
        (["--monitoring_config_file", "x"], "--monitoring_config_file"),
        (["--prot=1"], "unknown flag --prot.*--port"),
        (["serve"], "serve: not a flag"),
        (["--port=http"], "--port=http: must be a port"),
        (["--port=70000"], "--port=70000"),
        (["--port"], "--port needs a value"),
        (["--file_system_poll_wait_seconds=-1"], "must be a number of seconds"),
        (["--enable_model_warmup=maybe"], "must be true or false"),
        (["--grpc_max_threads=0"], "at least 1"),
        (["--host=somewhere"], "--host=somewhere: must be an address"),
        (["--host=1.2.3.4:80"], "must be an address"),
        ([], "--model_base_path is missing"),
    ],
)
def test_mistakes_are_named(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse(arguments)
    assert "\n" not in str(caught.value)


def test_ports_must_differ_and_something_must_be_served(base: str) -> None:
    with pytest.raises(UserError, match="must differ"):
        parse(["--model_base_path", base, "--port=9", "--rest_api_port=9"])
    with pytest.raises(UserError, match="both off"):
        parse(["--model_base_path", base, "--port=0"])


def test_base_path_must_be_the_folder_above_the_versions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        parse(["--model_base_path", str(tmp_path / "absent")])
    with pytest.raises(UserError, match="local folders"):
        parse(["--model_base_path", "gs://bucket/afm"])
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "saved_model.pb").touch()
    with pytest.raises(UserError, match="is itself a version"):
        parse(["--model_base_path", str(tmp_path / "7")])


def test_a_mistake_ends_with_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--enable_batching"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.strip() == usage()
    assert "--file_system_poll_wait_seconds" in usage()
    assert max(map(len, usage(60).splitlines())) <= 60 and usage(60).split() == usage().split()


def test_the_real_server_in_docker_compose_takes_the_same_flags(root: Path, base: str) -> None:
    service = yaml.safe_load((root / "deploy" / "docker-compose.yml").read_text())["services"]["serving"]
    assert service["image"].startswith("tensorflow/serving:")
    local = [item.replace("=/models/afm", f"={base}") for item in service["command"]]
    flags = parse(local)
    assert (flags.model_name, flags.port, flags.rest_api_port) == ("afm", 8500, 8501)
    assert {str(flags.port), str(flags.rest_api_port)} == {port.split(":")[1] for port in service["ports"]}
