"""Which GPU a process takes, on machines that are made up."""

from __future__ import annotations

import gc
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from afm_ctr import devices
from afm_ctr.cli import quiet_imports
from afm_ctr.devices import pin_gpu
from afm_ctr.errors import UserError


class FakeConfig:
    """Stands in for ``tf.config``."""

    def __init__(self, count: int) -> None:
        self.devices = [f"GPU:{number}" for number in range(count)]
        self.visible: list[str] | None = None
        self.growth: list[str] = []
        self.experimental = self

    def list_physical_devices(self, kind: str) -> list[str]:
        assert kind == "GPU"
        return self.devices

    def set_visible_devices(self, devices: list[str], kind: str) -> None:
        self.visible = devices

    def set_memory_growth(self, device: str, enable: bool) -> None:
        assert enable
        self.growth.append(device)


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    monkeypatch.delenv("HOROVOD_RANK", raising=False)


@pytest.mark.parametrize(
    ("count", "local_rank", "local_size", "visible", "taken"),
    [
        (4, 2, 4, None, "GPU:2"),
        (4, 2, 4, "0,1,2,3", "GPU:2"),
        (2, 0, 1, None, "GPU:0"),  # a single process opens one of many
        (1, 0, 1, None, "GPU:0"),
        (1, 3, 4, "3", "GPU:0"),  # Slurm and Kubernetes leave each rank one
        (1, 3, 4, "GPU-5a4b", "GPU:0"),
    ],
)
def test_the_gpu_that_a_process_takes(
    count: int, local_rank: int, local_size: int, visible: str | None, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv(devices.VISIBLE, visible)
    config = FakeConfig(count)
    assert pin_gpu(local_rank, local_size, config) == taken
    assert config.visible == config.growth == [taken]


def test_no_gpu_and_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    none = FakeConfig(0)
    assert pin_gpu(1, 2, none) is None and none.visible is None
    for count, visible in ((1, None), (2, None), (2, "0,1")):
        if visible:
            monkeypatch.setenv(devices.VISIBLE, visible)
        with pytest.raises(UserError, match=rf"3 ranks on this machine, but {count} GPU.*start at most {count} here"):
            pin_gpu(0, 3, FakeConfig(count))


@pytest.mark.parametrize(("rank", "taken"), [(None, ["GPU:0"]), ("1", None)])
def test_commands_take_one_gpu_and_ranks_wait_for_theirs(
    rank: str | None, taken: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    config = FakeConfig(4)
    for name in ("list_physical_devices", "set_visible_devices"):
        monkeypatch.setattr(tf.config, name, getattr(config, name))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", config.set_memory_growth)
    if rank is not None:
        monkeypatch.setenv("HOROVOD_RANK", rank)
    quiet_imports.load_tensorflow()
    assert config.visible == taken


def in_a_new_process(code: str, **env: str) -> list[str]:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.split()


def test_the_environment_is_set_before_tensorflow_reads_it(tmp_path: Path) -> None:
    reads = "import os\nprint(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])"
    (tmp_path / "tensorflow.py").write_text(reads)
    code = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "from afm_ctr.process_setup import load_tensorflow_without_keras as load\nload()"
    )
    assert in_a_new_process(code) == ["true"]
    assert in_a_new_process(code, TF_FORCE_GPU_ALLOW_GROWTH="false") == ["false"]


def test_prepare_hides_all_gpus_from_itself_and_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from afm_ctr.cli import data
    from afm_ctr.cli.app import app

    seen: list[Any] = []

    def stop(arguments: Any) -> None:
        seen.append(devices.os.environ[devices.VISIBLE])
        raise UserError("far enough")

    monkeypatch.setenv(devices.VISIBLE, "0,1")
    monkeypatch.setattr(data, "load_beam", stop)
    CliRunner().invoke(app, ["prepare", "--schema", "s", "--input", "i", "--output", "o", "--split", "tail:0.1/0.1"])
    assert seen == [""]


def test_the_collector_rests_while_tensorflow_is_imported() -> None:
    for fails in (False, True):
        gc.unfreeze()
        with suppress(ValueError), quiet_imports.without_chatter():
            assert not gc.isenabled()
            if fails:
                raise ValueError
        assert gc.isenabled() and gc.get_freeze_count()
