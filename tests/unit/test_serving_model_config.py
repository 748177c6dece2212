"""The model config file: policies, labels, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf import text_format

from afm_ctr.errors import UserError
from serving.protos.ssl_config_pb2 import SSLConfig
from serving.server.flags import parse
from serving.server.model_config import VersionPolicy, check_labels, read_model_config

ONE = 'name: "afm" base_path: "/models/afm" model_platform: "tensorflow"'


def read(folder: Path, text: str, wrap: bool = True):
    path = folder / "models.config"
    path.write_text(f"model_config_list {{ config {{ {text} }} }}" if wrap else text)
    return read_model_config(str(path))


def test_policies_and_labels(tmp_path: Path) -> None:
    plain = read(tmp_path, ONE)
    assert (plain.name, plain.base_path, plain.policy, plain.labels) == ("afm", "/models/afm", VersionPolicy(), {})
    canary = read(
        tmp_path,
        ONE + " model_version_policy { specific { versions: 2 versions: 5 } }"
        ' version_labels { key: "stable" value: 2 } version_labels { key: "canary" value: 5 }',
    )
    assert canary.policy.candidates([1, 2, 5, 9]) == [5, 2]
    assert canary.labels == {"stable": 2, "canary": 5}
    assert read(tmp_path, ONE + " model_version_policy { all {} }").policy == VersionPolicy(None)
    assert read(tmp_path, ONE + " model_version_policy { latest { num_versions: 2 } }").policy == VersionPolicy(2)
    assert VersionPolicy(2).candidates([1, 10, 9]) == [10, 9, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model_config_list { ", "not a ModelServerConfig"),
        ("model_config_list {}", "serves one model, not 0"),
        (f"model_config_list {{ config {{ {ONE} }} config {{ {ONE} }} }}", "one model, not 2"),
        (f"model_config_list {{ config {{ {ONE.replace('/models/afm', 'afm')} }} }}", "'afm' must be absolute"),
        ('model_config_list { config { name: "afm" base_path: "/m" } }', "model_platform"),
        (f"model_config_list {{ config {{ {ONE} model_version_policy {{ specific {{}} }} }} }}", "names no versions"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(tmp_path, text, wrap=False)
    with pytest.raises(UserError, match="No such file"):
        read_model_config(str(tmp_path / "absent"))


def test_a_label_moves_only_to_a_version_that_serves() -> None:
    check_labels({"a": 1}, {"a": 2, "new": 9}, [1, 2], "afm")
    with pytest.raises(UserError, match="version 3 of model afm, which is not currently available for inference"):
        check_labels({"a": 1}, {"a": 3}, [1, 2], "afm")


def test_the_file_stands_in_for_name_and_folder(tmp_path: Path) -> None:
    flags = parse(["--model_config_file", "x", "--model_config_file_poll_wait_seconds=5"])
    assert (flags.model_config_file, flags.model_config_file_poll_wait_seconds) == ("x", 5.0)


def test_the_files_in_the_documentation_are_what_the_server_reads(root: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```\n(.*?)^```", (root / "docs" / "serving.md").read_text(), re.MULTILINE | re.DOTALL)
    (models,) = [block for block in blocks if block.startswith("model_config_list")]
    found = read(tmp_path, models, wrap=False)
    assert (found.name, found.labels) == ("afm", {"stable": 41, "canary": 42})
    assert found.policy.candidates([41, 42, 43]) == [42, 41]
    (ssl,) = [block for block in blocks if block.startswith("server_key")]
    assert text_format.Parse(ssl, SSLConfig()).client_verify
