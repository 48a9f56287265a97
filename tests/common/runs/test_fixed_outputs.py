"""Outputs in folders that cannot be renamed: mount points, the current folder, folders in one that may not be written."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from components.__main__ import main
from components.common.errors import UserError
from components.common.runs import storage, work
from tests import disks
from tests.common.runs.test_stage_run import begin, files


@contextmanager
def mount(folder: Path) -> Iterator[str]:
    with disks.mounted(folder, "10m"):
        yield str(folder)


@contextmanager
def bind_mount(folder: Path) -> Iterator[str]:
    with disks.mounted(folder.with_name("disk"), "10m") as disk:
        (disk / "a b").mkdir()
        (folder / "a b").mkdir(parents=True)
        subprocess.run(["mount", "--bind", disk / "a b", folder / "a b"], check=True)
        try:
            yield str(folder / "a b")
        finally:
            subprocess.run(["umount", "--lazy", folder / "a b"], check=True)


@contextmanager
def current(folder: Path) -> Iterator[str]:
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield "."
    finally:
        os.chdir(before)


@contextmanager
def above(folder: Path) -> Iterator[str]:
    (folder / "below").mkdir(parents=True)
    with current(folder / "below" / "x"):
        yield str(folder / "below")


@pytest.fixture(params=[mount, bind_mount, current])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with request.param(tmp_path / "out") as path:
        yield path


def test_the_output_appears_with_run_json_last(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    original = storage.link

    def link(source: Path, target: Path) -> None:
        order.append(target.name)
        original(source, target)

    monkeypatch.setattr(storage, "link", link)
    begun = begin(out)
    assert begun.folder.is_relative_to(Path(out).resolve())
    (begun.folder / "figures").mkdir()
    (begun.folder / "figures" / "a.png").write_text("a")
    (begun.folder / "checkpoints").mkdir()
    (begun.folder / "checkpoints" / "1.pt").write_text("")
    begun.finish({"a": 1}, drop=("checkpoints",))
    assert files(Path(out)) == {"figures", "figures/a.png", "metrics.json", "run.json"}
    assert order[-1] == "run.json"


def test_an_earlier_output_is_replaced(out: str) -> None:
    first = begin(out)
    (first.folder / "only-in-the-first").write_text("")
    first.finish({"a": 1})
    begin(out, inputs={"shards": "def"}).finish({"a": 2})
    assert files(Path(out)) == {"metrics.json", "run.json"}
    assert json.loads(Path(out, "metrics.json").read_text()) == {"a": 2}


@pytest.mark.parametrize("copied", range(4))
def test_a_kill_while_files_appear_loses_nothing(copied: int, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(out).finish({"earlier": 1})
    begun = begin(out, inputs={"shards": "def"})
    for name in ("a", "b", "progress"):
        (begun.folder / name).write_text(name)
    before = files(begun.folder)
    calls = iter(range(9))
    original = storage.link

    def link(source: Path, target: Path) -> None:
        if next(calls) >= copied:
            raise KeyboardInterrupt
        original(source, target)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(storage, "link", link)
        context.setattr(storage, "_UPLOADS", 1)
        begun.finish({"new": 1}, drop=("progress",))
    assert not Path(out, "run.json").exists()  # readers refuse it
    again = begin(out, inputs={"shards": "def"})
    assert again.resumed
    assert before <= files(again.folder)
    again.finish({"new": 2}, drop=("progress",))
    assert files(Path(out)) == {"a", "b", "metrics.json", "run.json"}


def test_a_new_volume_may_hold_lost_and_found(out: str) -> None:
    Path(out, "lost+found").mkdir()
    begin(out).finish({})
    assert files(Path(out)) == {"lost+found", "metrics.json", "run.json"}


def test_what_others_made_is_refused(out: str) -> None:
    Path(out, "thesis.tex").touch()
    with pytest.raises(UserError, match="holds files that evaluate did not make"):
        begin(out)


def test_files_are_copied_where_there_are_no_hard_links(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    begun = begin(out)
    (begun.folder / "a").write_text("a")
    begun.finish({})
    assert Path(out, "a").read_text() == "a"


@pytest.mark.parametrize("place", [mount, current, above])
def test_a_folder_above_the_current_one_stays(place: Callable[[Path], AbstractContextManager[str]], tmp_path: Path) -> None:
    with place(tmp_path / "out") as out:
        assert work.is_fixed(out)
    assert not work.is_fixed(str(tmp_path / "out"))
    assert not work.is_fixed(str(tmp_path / "missing"))


def test_a_folder_whose_parent_may_not_be_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    begin(tmp_path / "out").finish({})
    assert files(tmp_path) == {"out", "out/metrics.json", "out/run.json"}


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "out").symlink_to("large-disk")
    for number in range(2):
        begun = begin(tmp_path / "out", inputs={"shards": str(number)})
        assert begun.folder.parent == tmp_path / "large-disk.partial"
        begun.finish({"a": number})
    assert (tmp_path / "out").is_symlink()
    assert files(tmp_path / "large-disk") == {"metrics.json", "run.json"}


def test_a_dangling_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("large-disk")
    begin(tmp_path / "out").finish({})
    assert files(tmp_path / "large-disk") == {"metrics.json", "run.json"}


def test_simulate_writes_into_a_mount_point(tmp_path: Path) -> None:
    command = ["simulate", "--params", os.devnull, "--set", "simulate.patients=2", "--set", "simulate.size=64", "--out"]
    assert main([*command, str(tmp_path / "plain")]) == 0
    with mount(tmp_path / "out") as out:
        assert main([*command, out]) == 0
        assert files(Path(out)) == files(tmp_path / "plain")
        (Path(out) / "labels.csv").unlink()  # killed before the end
        (Path(out) / "boxes.csv").unlink()
        assert main([*command, out]) == 0
        assert files(Path(out)) == files(tmp_path / "plain")
