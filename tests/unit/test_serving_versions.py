"""The watcher: which version serves, when it changes, and what becomes of requests on the old one."""

from __future__ import annotations

import threading
from pathlib import Path

import grpc
import pytest

from afm_ctr.errors import UserError
from afm_ctr.export import saved_model
from serving.server.request_errors import RequestError, from_number
from serving.server.versions import AVAILABLE, END, VersionWatcher


class Model:
    def __init__(self, version: int):
        self.version = version
        self.closed = False

    def close(self) -> None:
        self.closed = True


def load(version: int, folder: Path) -> Model:
    if (folder / "broken").exists():
        raise from_number(15, f"{folder.name} is broken")
    return Model(version)


def make(base: Path, *versions: str, broken: bool = False) -> None:
    for version in versions:
        (base / version).mkdir(parents=True)
        if broken:
            (base / version / "broken").touch()


@pytest.fixture
def watcher(tmp_path: Path) -> VersionWatcher[Model]:
    return VersionWatcher("afm", tmp_path, load)


def states(watcher: VersionWatcher[Model]) -> dict[int, int]:
    return {item.version: item.state for item in watcher.states()}


def test_the_highest_number_serves_and_other_names_are_ignored(
    watcher: VersionWatcher[Model], tmp_path: Path
) -> None:
    make(tmp_path, "2", "00010", "9", "tmp-11", "12.bak", "x", "١٢", str(2**63), "9" * 20, "1" * 250)
    (tmp_path / "99").touch()  # a file
    watcher.look()
    assert watcher.version == 10


def test_export_sees_the_versions_that_the_server_sees(tmp_path: Path) -> None:
    make(tmp_path, "2", "00010", "١٢", str(2**63), "9" * 20)
    assert saved_model.versions(tmp_path) == [2, 10]
    assert saved_model._version(tmp_path, None) == 11
    for version in (-1, 0, 2**63):
        with pytest.raises(UserError, match=f"version is {version}; it must be 1 or more, and at most {2**63 - 1}"):
            saved_model._version(tmp_path, version)
    make(tmp_path, str(2**63 - 1))
    with pytest.raises(UserError, match=f"version is {2**63}; it must be"):
        saved_model._version(tmp_path, None)


def test_a_new_version_replaces_the_old_one_which_is_closed(watcher: VersionWatcher[Model], tmp_path: Path) -> None:
    make(tmp_path, "1")
    watcher.look()
    with watcher.use("afm") as old:
        pass
    make(tmp_path, "2")
    watcher.look()
    assert watcher.version == 2
    assert old.closed
    assert states(watcher) == {1: END, 2: AVAILABLE}
    with pytest.raises(RequestError, match=r"Specific\(afm, 1\)") as caught, watcher.use("afm", 1):
        pass
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


def test_a_request_inside_finishes_on_the_old_version(watcher: VersionWatcher[Model], tmp_path: Path) -> None:
    make(tmp_path, "1")
    watcher.look()
    with watcher.use("afm") as old:
        make(tmp_path, "2")
        swap = threading.Thread(target=watcher.look)
        swap.start()
        while watcher.version != 2:
            pass
        assert not old.closed
        with watcher.use("afm") as new:
            assert new.version == 2
    swap.join(10)
    assert old.closed


def test_a_broken_version_never_replaces_one_that_serves(watcher: VersionWatcher[Model], tmp_path: Path) -> None:
    make(tmp_path, "1")
    watcher.look()
    make(tmp_path, "2", broken=True)
    watcher.look()
    assert watcher.version == 1
    (failed,) = [item for item in watcher.states() if item.version == 2]
    assert (failed.state, failed.error_code, failed.error_message) == (END, 15, "2 is broken")


def test_a_broken_version_is_tried_again_when_its_files_change(tmp_path: Path) -> None:
    tries: list[int] = []

    def counted(version: int, folder: Path) -> Model:
        tries.append(version)
        return load(version, folder)

    watcher = VersionWatcher("afm", tmp_path, counted)
    make(tmp_path, "1", broken=True)
    watcher.look()
    watcher.look()
    assert tries == [1]
    (tmp_path / "1" / "broken").rename(tmp_path / "1" / "whole")
    watcher.look()
    assert watcher.version == 1


def test_below_a_broken_newest_the_next_one_serves(watcher: VersionWatcher[Model], tmp_path: Path) -> None:
    make(tmp_path, "1", "2")
    make(tmp_path, "3", broken=True)
    watcher.look()
    assert watcher.version == 2


def test_removing_the_newest_rolls_back_and_removing_all_keeps_serving(
    watcher: VersionWatcher[Model], tmp_path: Path
) -> None:
    make(tmp_path, "1", "2")
    watcher.look()
    (tmp_path / "2").rmdir()
    watcher.look()
    assert watcher.version == 1
    (tmp_path / "1").rmdir()
    watcher.look()
    assert watcher.version == 1


def test_an_empty_folder_waits_and_says_so(
    watcher: VersionWatcher[Model], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "serving.server"):
        watcher.look()
        watcher.look()
    assert watcher.version is None
    assert not watcher.wait_available(0)
    assert [str(tmp_path) in record.message for record in caplog.records] == [True]
    with pytest.raises(RequestError, match=r"Latest\(afm\)"), watcher.use("afm"):
        pass


def test_the_thread_picks_up_a_version(tmp_path: Path) -> None:
    watcher = VersionWatcher("afm", tmp_path, load, poll_seconds=0.01)
    watcher.start()
    make(tmp_path, "5")
    assert watcher.wait_available(10)
    with watcher.use("afm") as model:
        assert model.version == 5
    watcher.stop()
    assert model.closed


@pytest.mark.parametrize(
    ("name", "version", "label", "code", "says"),
    [
        ("", None, None, grpc.StatusCode.INVALID_ARGUMENT, "no name specified"),
        ("other", None, None, grpc.StatusCode.NOT_FOUND, r"Servable not found for request: Latest\(other\)"),
        ("afm", 7, None, grpc.StatusCode.NOT_FOUND, r"Servable not found for request: Specific\(afm, 7\)"),
        ("afm", None, "canary", grpc.StatusCode.INVALID_ARGUMENT, "Unrecognized servable version label: canary"),
    ],
)
def test_who_is_not_here(
    watcher: VersionWatcher[Model],
    tmp_path: Path,
    name: str,
    version: int | None,
    label: str,
    code: grpc.StatusCode,
    says: str,
) -> None:
    make(tmp_path, "1")
    watcher.look()
    with pytest.raises(RequestError, match=says) as caught, watcher.use(name, version, label):
        pass
    assert caught.value.code is code
