"""What a user names as an input and what has no end, or no writer: one line, at once."""

from __future__ import annotations

import os
import pty
import socket
import threading
import time
from pathlib import Path

import pytest

from afm_ctr.errors import UserError
from afm_ctr.io import inputs
from afm_ctr.io.inputs import open_input, read_settings
from afm_ctr.rawlog import open_log
from afm_ctr.schema import read_yaml
from afm_ctr.schema.keys import read_key
from beam_jobs.splits import parse_rule, read_index
from serving.channel import tls_credentials
from serving.score import check_log, score_file
from serving.server.model_config import read_model_config
from serving.server.tls import server_credentials


def _lines(path: str) -> None:
    with open_log(path) as lines:
        lines.take(1)


def _index(path: str) -> None:
    read_index(parse_rule(f"index:{path}"), 3)


READERS = [
    _index,
    _lines,
    lambda path: read_yaml(Path(path)),
    read_key,
    read_model_config,
    server_credentials,
    check_log,
]


@pytest.mark.parametrize("reader", READERS[:-1])
def test_a_file_that_opens_and_cannot_be_read_is_one_line(reader):
    with pytest.raises(UserError, match=r"/proc/self/mem: .*Input/output error"):
        reader("/proc/self/mem")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/random"])
def test_a_device_is_one_line_at_once(reader, device):
    with pytest.raises(UserError, match=f"{device}: .*it is a device, not a file or a pipe"):
        reader(device)


def test_a_terminal_a_socket_and_a_folder_are_no_input(tmp_path):
    ours, theirs = pty.openpty()
    with pytest.raises(OSError, match="it is a device"):
        open_input(os.ttyname(theirs))
    os.close(ours)
    os.close(theirs)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(OSError, match="it is a socket"):
            open_input(tmp_path / "s")
    with pytest.raises(IsADirectoryError):
        open_input(tmp_path)
    assert read_settings(os.devnull) == b""


@pytest.mark.parametrize("reader", READERS[:-1])
def test_a_pipe_that_nobody_writes_to_is_one_line(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_WRITER_SECONDS", 0.05)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is a pipe that nobody writes to"):
        reader(str(tmp_path / "pipe"))


def test_a_pipe_is_read_whole_from_a_writer_who_comes_late_and_takes_his_time(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_WRITER_SECONDS", 5.0)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        time.sleep(0.1)
        with open(pipe, "wb", buffering=0) as stream:
            for part in (b"a: ", b"1\n"):
                time.sleep(0.1)
                stream.write(part)

    writer = threading.Thread(target=write)
    writer.start()
    assert read_yaml(pipe) == {"a": 1}
    writer.join()


def test_settings_without_end_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_SETTINGS_BYTES", 1 << 20)
    with open(tmp_path / "long.yaml", "wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(UserError, match=r"long\.yaml: cannot be read: it holds more than 1 MB"):
        read_yaml(tmp_path / "long.yaml")


def test_what_breaks_while_a_log_is_read_is_one_line_of_the_log():
    with pytest.raises(UserError, match="/proc/self/mem: cannot read it: Input/output error"):
        _lines("/proc/self/mem")


def test_certificates_are_files():
    with pytest.raises(ValueError, match="/dev/zero is not a file"):
        tls_credentials("/dev/zero")
    with pytest.raises(OSError, match="Input/output error: '/proc/self/mem'"):
        tls_credentials("/proc/self/mem")


def test_score_names_a_missing_log_before_a_server_that_is_not_there(tmp_path):
    schema = Path(__file__).parents[2] / "examples" / "criteo" / "schema-small.yaml"
    with pytest.raises(UserError, match=r"--input .*absent\.tsv: cannot read it: No such file"):
        score_file("127.0.0.1:1", "afm", schema, tmp_path / "absent.tsv", tmp_path / "out.jsonl")


def test_a_pipe_in_a_version_folder_does_not_keep_the_server_for_ever(tmp_path, monkeypatch):
    from serving.server.models import _read_signatures

    monkeypatch.setattr(inputs, "_WRITER_SECONDS", 0.05)
    os.mkfifo(tmp_path / "saved_model.pb")
    with pytest.raises(OSError, match="it is a pipe that nobody writes to"):
        _read_signatures(tmp_path)
