"""Two versions at once behind labels, as in a canary: the model config file, and changes of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_model import export

from afm_ctr.errors import UserError
from serving.client import Client
from serving.errors import InvalidArgument, NotFound
from serving.load import load_test
from serving.score import score_file
from serving.server.app import LocalServer
from serving.server.flags import ServerFlags

ZERO = {"feature_ids": np.zeros((1, 2), np.int64), "feature_vals": np.zeros((1, 2), np.float32)}


def write(path: Path, base: Path, versions: list[int], **labels: int) -> None:
    policy = " ".join(f"versions: {version}" for version in versions)
    named = " ".join(f'version_labels {{ key: "{key}" value: {value} }}' for key, value in labels.items())
    aside = path.with_suffix(".new")
    aside.write_text(
        f'model_config_list {{ config {{ name: "afm" base_path: "{base}" model_platform: "tensorflow" '
        f"model_version_policy {{ specific {{ {policy} }} }} {named} }} }}"
    )
    aside.rename(path)


def answer(target: str, label: str | None = None, version: int | None = None) -> int:
    with Client(target, label=label, version=version, timeout=20) as client:
        outputs = client.predict(ZERO, "serving_default")
        assert outputs["logit"].tolist() == [outputs.version]
        return outputs.version


def until(target: str, label: str, version: int) -> None:
    end = time.monotonic() + 20
    while answer(target, label) != version:
        assert time.monotonic() < end
        time.sleep(0.05)


def rows(folder: Path) -> tuple[Path, Path]:
    """Schema and log of two raw rows."""
    hashed = {"kind": "hash", "buckets": 9}
    fields = [{"name": name, "kind": "categorical", "encoding": hashed} for name in ("A", "B")]
    layout = {"kind": "delimited", "delimiter": ",", "header": True}
    (folder / "schema.yaml").write_text(json.dumps({"name": "tiny", "format": layout, "fields": fields}))
    (folder / "log.csv").write_text("A,B\nx,1\ny,2\n")
    return folder / "schema.yaml", folder / "log.csv"


def test_a_canary_by_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, config = tmp_path / "afm", tmp_path / "models.config"
    base.mkdir()
    for version in (1, 2, 3, 4):
        export(base, version)
    write(config, base, [1, 2], stable=1, canary=2)
    flags = ServerFlags(
        model_config_file=str(config),
        port=0,
        file_system_poll_wait_seconds=0.05,
        model_config_file_poll_wait_seconds=0.05,
        allow_version_labels_for_unavailable_models=True,
    )
    with LocalServer(flags, "127.0.0.1") as server:
        target = f"127.0.0.1:{server.grpc_port}"
        assert [answer(target), answer(target, "stable"), answer(target, "canary")] == [2, 1, 2]
        assert [answer(target, version=1), answer(target, version=2)] == [1, 2]
        with Client(target, label="stable", timeout=20) as stable:
            assert [(state.version, state.state) for state in stable.status()] == [(1, "AVAILABLE")]
        with pytest.raises(NotFound, match=r"Specific\(afm, 3\)"):
            answer(target, version=3)
        with pytest.raises(InvalidArgument, match="label: nope"):
            answer(target, "nope")
        schema, log = rows(tmp_path)
        for asked, by in (({"label": "stable"}, 1), ({"label": "canary"}, 2), ({"version": 1}, 1)):
            assert score_file(target, "afm", schema, log, tmp_path / "out.jsonl", **asked).versions == [by]
        with pytest.raises(UserError, match="label: nope"):
            load_test(target, "afm", schema, log, concurrency=1, label="nope")

        write(config, base, [1, 2], stable=2, canary=2)  # roll out
        until(target, "stable", 2)
        write(config, base, [1, 2], stable=1, canary=2)  # roll back
        until(target, "stable", 1)

        with caplog.at_level("ERROR", "serving.server"):
            write(config, base, [1, 3], stable=3, canary=2)  # not before 3 serves
            end = time.monotonic() + 20
            while "version 3 of model afm, which is not currently available" not in caplog.text:
                assert time.monotonic() < end
                time.sleep(0.05)
        assert [answer(target, "stable"), answer(target, "canary")] == [1, 2]
        write(config, base, [1, 2, 3], stable=1, canary=2)  # load it first, then move the label
        end = time.monotonic() + 20
        while server.watcher.version != 3:
            assert time.monotonic() < end
            time.sleep(0.05)
        write(config, base, [2, 3], stable=3, canary=2)
        until(target, "stable", 3)


def test_labels_at_start_need_the_flag_that_the_real_server_wants(tmp_path: Path) -> None:
    write(tmp_path / "models.config", tmp_path, [1], stable=1)
    flags = ServerFlags(model_config_file=str(tmp_path / "models.config"), port=0)
    with pytest.raises(UserError, match="--allow_version_labels_for_unavailable_models=true"):
        LocalServer(flags, "127.0.0.1")
