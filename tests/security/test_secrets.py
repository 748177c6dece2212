"""Secrets on a command line reach no artefact: both spellings, URLs, pairs, and values of the environment."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from afm_ctr.cli import main
from afm_ctr.io.secrets import mask_command, mask_text, mask_words
from afm_ctr.records import Manifest
from afm_ctr.records.manifest import MANIFEST_NAME
from afm_ctr.report import about
from afm_ctr.report.record import Judged, RunRecord
from afm_ctr.training import TrainConfig
from afm_ctr.training.run_dir import RunDir
from afm_ctr.webpage import Page
from tests import prepared

PLANTED = "wJalrXUtnFEMIK7MDENGbPxRfiCY"


@pytest.mark.parametrize(
    "words",
    [
        [f"--s3_secret_access_key={PLANTED}"],
        ["--s3_secret_access_key", PLANTED],
        ["--s3-secret-access-key", PLANTED, "--s3_region_name=eu"],
        [f"--s3_session_token={PLANTED}"],
        ["--azure_connection_string", f"AccountName=a;AccountKey={PLANTED}"],
        [f"--azure_connection_string=AccountName=a;AccountKey={PLANTED};x=y"],
        [f"--password=a{PLANTED}=="],
        ["--db-password", f"-{PLANTED}"],
        [f"--api_key={PLANTED}"],
        [f"--input=s3://user:{PLANTED}@host/logs/*.csv"],
        ["--input", f"https://:{PLANTED}@host/a?b=c"],
        [f"https://host/a?X-Amz-Signature={PLANTED}&b=c"],
        [f"https://account.blob/a?sv=1&sig={PLANTED}"],
        ["--experiments", f"a,token={PLANTED},b"],
        ["--environment_options", f'{{"client_secret": "{PLANTED}", "x": 1}}'],
        ["--environment_options", f"{{'AWS_SECRET_ACCESS_KEY': '{PLANTED}'}}"],
        ["--header", f"Authorization: Bearer {PLANTED}"],
        [f"AWS_SECRET_ACCESS_KEY={PLANTED}", "afm-ctr"],
    ],
)
def test_secrets_are_masked(words):
    masked = mask_words(["prepare", *words, "--output", "data"])
    assert PLANTED not in " ".join(masked) and "***" in " ".join(masked)
    assert masked[0] == "prepare" and masked[-2:] == ["--output", "data"] and len(masked) == len(words) + 3
    command = mask_command(shlex.join(["prepare", *words, "--output", "data"]))
    assert PLANTED not in command and command.endswith("--output data")
    assert mask_command(command) == command  # reading what was written changes nothing


def test_what_is_no_secret_stays():
    words = shlex.split(
        "afm-ctr prepare --schema s.yaml --input 'logs/a b*.csv' --output s3://bucket/x --split hash:token:80/10/10 "
        "--set optimizer.learning_rate=0.1 --label key --key_file=/etc/key --s3_region_name eu --no_auth --seed 3 "
        "--service_account_email a@b.c --token_file /run/token --target localhost:8500"
    )
    assert mask_words(words) == words and mask_command(shlex.join(words)) == shlex.join(words)
    assert mask_command("not 'closed --password=abcdefgh") == "not 'closed --password=***"


def test_values_of_the_environment(monkeypatch):
    monkeypatch.setenv("MY_DB_PASSWORD", PLANTED)
    monkeypatch.setenv("API_KEY", "short")
    assert mask_text(f"cannot open s3://x/{PLANTED}/y: short") == "cannot open s3://x/***/y: short"


def artefacts(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_that_a_shell_is_in_is_no_secret(monkeypatch):
    monkeypatch.setenv("PWD", "/home/me/campaign")
    monkeypatch.setenv("OLDPWD", "/home/me/earlier")
    said = "no row is left; the lines are in /home/me/campaign/out; see /home/me/earlier"
    assert mask_text(said) == said
    monkeypatch.setenv("DB_PWD", "/home/me/campaign")
    assert "campaign" not in mask_text(said)


def test_prepare_leaves_no_secret(tmp_path, monkeypatch, capsys):
    (tmp_path / "log.csv").write_text("click,user\n" + "".join(f"{i % 2},u{i % 3}\n" for i in range(60)) + "1\n")
    (tmp_path / "s.yaml").write_text(
        "name: x\nformat: {kind: delimited}\nlabel: {column: click}\n"
        "fields: [{name: user, kind: categorical, encoding: {kind: vocabulary}}]\n"
    )
    output = tmp_path / "data"
    command = ["afm-ctr", "prepare", "--schema", str(tmp_path / "s.yaml"), "--input", str(tmp_path / "log.csv")]
    command += ["--output", str(output), "--max-reject-share", "1", f"--s3_secret_access_key={PLANTED}"]
    command += ["--s3_session_token", PLANTED]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    found = artefacts(output)
    assert any(b'"command"' in content for content in found.values())
    assert [path for path, content in found.items() if PLANTED.encode() in content] == []
    assert PLANTED not in said.out + said.err
    assert "--s3_secret_access_key=***" in Manifest.load(output).command


def test_train_records_no_secret_and_old_files_are_masked_when_read(tmp_path):
    folder = RunDir(tmp_path / "run")
    command = ["train", "--data", "d", f"--password={PLANTED}"]
    folder.record(TrainConfig(), prepared.schema(), {"data": "d"}, command)
    path = tmp_path / "run" / "run.json"
    assert PLANTED not in path.read_text() and "--password=***" in path.read_text()
    old = json.loads(path.read_text())
    old["command"] = command
    old["sessions"][0]["command"] = command
    path.write_text(json.dumps(old))
    record = RunRecord.load(tmp_path / "run")
    assert PLANTED not in json.dumps(record.run) + json.dumps(record.sessions)
    folder.record(TrainConfig(), prepared.schema(), {"data": "d"}, ["train"])  # a resumed run
    assert PLANTED not in path.read_text() and "--password=***" in path.read_text()


def test_a_report_of_old_files_shows_no_secret(tmp_path):
    prepared.write(tmp_path / "data")
    manifest = tmp_path / "data" / MANIFEST_NAME
    content = json.loads(manifest.read_text()) | {"command": f"afm-ctr prepare --db_password {PLANTED} --output data"}
    manifest.write_text(json.dumps(content))
    RunDir(tmp_path / "run").record(TrainConfig(), prepared.schema(), {"data": "d"}, ["train"])
    run = tmp_path / "run" / "run.json"
    old = json.loads(run.read_text())
    old["sessions"][0]["command"] = ["train", f"--token={PLANTED}"]
    run.write_text(json.dumps(old))
    record = RunRecord.load(tmp_path / "run")
    page = Page("run")
    about.add_data(page, record, Judged("data", Manifest.load(tmp_path / "data"), "test"))
    about.add_surroundings(page, record)
    html = page.html()
    assert PLANTED not in html and "--db_password *** --output data" in html and "--token=***" in html
