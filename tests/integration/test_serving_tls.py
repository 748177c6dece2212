"""TLS and mutual TLS: who is let in, and what those who are not are told."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from certificates import DAY, Authority, Pair
from tiny_model import export

from afm_ctr.cli.serving import chosen_connection
from afm_ctr.errors import UserError
from serving.client import Client, tls_credentials
from serving.errors import InsecureConnection, Unavailable
from serving.server.app import LocalServer
from serving.server.flags import ServerFlags
from serving.server.tls import server_credentials
from tests.integration.conftest import afm_ctr, last_json

ROW = {"A": ["x"], "B": ["1"]}
SCHEMA = {
    "name": "tiny",
    "format": {"kind": "delimited", "delimiter": ",", "header": True},
    "fields": [
        {"name": "A", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 9}},
        {"name": "B", "kind": "numeric", "encoding": {"kind": "value"}},
    ],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    export(folder, 1)
    return folder


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


def ssl_config(folder: Path, pair: Pair, **more: Any) -> str:
    certificate, key = pair.texts
    values = {"server_key": key, "server_cert": certificate} | more
    path = folder / "ssl.config"
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items()))
    return str(path)


@contextmanager
def serving(base: Path, config: str, host: str = "127.0.0.1") -> Iterator[str]:
    flags = ServerFlags(
        model_base_path=str(base), model_name="afm", port=0, file_system_poll_wait_seconds=0, ssl_config_file=config
    )
    with LocalServer(flags, host) as server:
        yield f"{host}:{server.grpc_port}"


def refused(target: str, credentials: Any, says: str, kind: type[Unavailable] = InsecureConnection) -> None:
    """Whatever the client asks, it gets one clear line, in time."""
    with Client(target, credentials=credentials, timeout=20) as client, pytest.raises(kind, match=says) as caught:
        client.predict(ROW)
    assert caught.value.code == "UNAVAILABLE"
    assert "\n" not in str(caught.value)
    assert target in str(caught.value)


def test_tls(base: Path, tmp_path: Path, authority: Authority) -> None:
    with serving(base, ssl_config(tmp_path, authority.sign("server"))) as target:
        good = tls_credentials(authority.certificate)
        with Client(target, credentials=good, timeout=20) as client:
            assert client.wait_ready(20).version == 1
            assert client.predict(ROW).version == 1
        port = target.rpartition(":")[2]
        with Client([target, f"localhost:{port}"], credentials=good, server_name="localhost", timeout=20) as both:
            assert both.predict(ROW).version == 1
        refused(
            target,
            tls_credentials(Authority(tmp_path, "theirs").certificate),
            "not accepted: CERTIFICATE_VERIFY_FAILED",
        )
        refused(target, tls_credentials(), "not accepted: CERTIFICATE_VERIFY_FAILED")
        refused(target, None, "closed the connection.*does it want TLS", Unavailable)


def test_mutual_tls(base: Path, tmp_path: Path, authority: Authority) -> None:
    ca = authority.certificate
    config = ssl_config(tmp_path, authority.sign("server"), custom_ca=ca.read_text(), client_verify=True)
    ours, theirs = authority.sign("ours-client"), Authority(tmp_path, "theirs").sign("theirs-client")
    old = authority.sign("old-client", -3 * DAY, -DAY)
    with serving(base, config) as target:
        with Client(target, credentials=tls_credentials(ca, ours.certificate, ours.key), timeout=20) as client:
            assert client.predict(ROW).version == 1
        # In TLS 1.3 a client is through before the server looks at its certificate: it sees no more than the end.
        for pair in (None, theirs, old):
            own = tls_credentials(ca) if pair is None else tls_credentials(ca, pair.certificate, pair.key)
            refused(target, own, "closed the connection.*another client certificate", Unavailable)


def test_an_expired_certificate_is_refused(base: Path, tmp_path: Path, authority: Authority) -> None:
    with serving(base, ssl_config(tmp_path, authority.sign("server", -3 * DAY, -DAY))) as target:
        refused(target, tls_credentials(authority.certificate), "expired")


def test_a_server_without_tls_is_told_from_one_that_is_away(base: Path, authority: Authority) -> None:
    with serving(base, "") as target:
        refused(target, tls_credentials(authority.certificate), "does not speak TLS")
    refused(target, tls_credentials(authority.certificate), "does not answer", Unavailable)


def test_a_wrong_config_file_is_named_before_anything_is_served(
    base: Path, tmp_path: Path, authority: Authority
) -> None:
    one, other = authority.sign("one"), authority.sign("other")
    path = tmp_path / "wrong.config"
    for content, says in (
        (None, "No such file"),
        ("server_ky: ''", "not an SSLConfig"),
        ("server_key: '/etc/key.pem'", "server_key must be the PEM text itself"),
        (Path(ssl_config(tmp_path, one)).read_text() + "client_verify: true", "custom_ca must be the PEM text"),
        (Path(ssl_config(tmp_path, Pair(one.certificate, other.key))).read_text(), "do they belong together"),
    ):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        with pytest.raises(UserError, match=says) as caught, serving(base, str(path)):
            pass
        assert f"--ssl_config_file={path}" in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"\nserver_cert', "\nserver_cert"),  # a quote is missing
        lambda text: text.replace("server_key: ", "server_key "),
        lambda text: text.replace("server_key: ", ""),
        lambda text: text.replace("\\n", "\n"),  # line ends as in the PEM file
        lambda text: "x {" + text,
        lambda text: text[: len(text) // 3],
    ],
)
def test_a_private_key_in_a_config_that_does_not_parse_is_not_printed(
    damage: Any, tmp_path: Path, authority: Authority
) -> None:
    pair = authority.sign("server")
    path = Path(ssl_config(tmp_path, pair))
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=r"not an SSLConfig in text format \(line \d+, column \d+\)") as caught:
        server_credentials(str(path))
    assert "BEGIN" not in str(caught.value)
    for line in "".join(pair.texts).splitlines():
        assert line[:16] not in str(caught.value)
    path.write_bytes(b"server_key: \xff" + pair.texts[1].encode())
    with pytest.raises(UserError, match="byte 12 is no UTF-8") as caught:
        server_credentials(str(path))
    assert "BEGIN" not in str(caught.value)


def test_each_of_several_servers_is_held_against_its_own_name(
    base: Path, tmp_path: Path, authority: Authority
) -> None:
    """A certificate of the first server's name is no good at the second."""
    good = tls_credentials(authority.certificate)
    with serving(base, ssl_config(tmp_path, authority.sign("server")), "0.0.0.0") as target:  # signed for 127.0.0.1
        first, second = target.replace("0.0.0.0", "127.0.0.1"), target.replace("0.0.0.0", "127.0.0.2")
        refused(second, good, "not accepted: it is for another name")
        with Client([first, second], credentials=good, timeout=20) as both:
            assert [both.predict(ROW).version for _ in range(4)] == [1] * 4
        refused(f"{second},{second}", good, "not accepted")


def test_the_client_s_own_files_are_checked(tmp_path: Path, authority: Authority) -> None:
    pair = authority.sign("client")
    with pytest.raises(ValueError, match="both certificate and key"):
        tls_credentials(certificate=pair.certificate)
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ValueError, match=r"empty\.pem is not a PEM file"):
        tls_credentials(tmp_path / "empty.pem")
    with pytest.raises(ValueError, match=r"client\.key holds no certificate"):
        tls_credentials(pair.key)
    with pytest.raises(ValueError, match=r"not a certificate and its key \(KEY_VALUES_MISMATCH\)"):
        tls_credentials(None, pair.certificate, authority.sign("other").key)
    with pytest.raises(ValueError, match="the key has a password"):
        tls_credentials(None, pair.certificate, pair.locked())


def test_the_commands_speak_mutual_tls(base: Path, tmp_path: Path, authority: Authority) -> None:
    schema, log, out = tmp_path / "schema.yaml", tmp_path / "log.csv", tmp_path / "out.jsonl"
    schema.write_text(yaml.safe_dump(SCHEMA))
    log.write_text("A,B\nx,1\ny,2\n")
    pair, stranger = authority.sign("client"), Authority(tmp_path, "theirs")
    config = ssl_config(
        tmp_path, authority.sign("server"), custom_ca=authority.certificate.read_text(), client_verify=True
    )

    def command(name: str, ca: Path, *more: Any, code: int = 0) -> subprocess.CompletedProcess[str]:
        files = ("--ca", ca, "--cert", pair.certificate, "--key", pair.key)
        return afm_ctr(
            name, "--target", target, "--schema", schema, "--input", log, *files, *more, "--json", code=code
        )

    with serving(base, config) as target:
        scored = last_json(command("score", authority.certificate, "--output", out, "--model-version", 1))
        assert (scored["rows"], scored["errors"], scored["versions"]) == (2, 0, [1])
        out.unlink()
        told = command("score", stranger.certificate, "--output", out, code=2).stderr
        assert "not accepted: CERTIFICATE_VERIFY_FAILED" in told and len(told.splitlines()) == 1
        assert not out.exists()
        loaded = last_json(command("load-test", authority.certificate, "--concurrency", 1, "--max-requests", 5))
        assert (loaded["answered"], loaded["errors"]) == (5, {})


def test_connection_options_that_cannot_be_used_are_one_line(tmp_path: Path, authority: Authority) -> None:
    pair, absent = authority.sign("client"), tmp_path / "absent.pem"
    assert chosen_connection(3, None, None, None, None) == {"version": 3, "label": None, "credentials": None}
    for options, says in (
        ((1, "stable", None, None, None), "--model-version or --label, not both"),
        ((None, None, None, pair.certificate, None), "--cert and --key go together"),
        ((None, None, absent, None, None), f"TLS: cannot read {absent}: No such file"),
        ((None, None, tmp_path, None, None), "Is a directory"),
        ((None, None, pair.key, None, None), "client.key holds no certificate"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            chosen_connection(*options)
        assert "\n" not in str(caught.value)
