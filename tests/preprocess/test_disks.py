import subprocess
import sys
from pathlib import Path

import pytest

from components.__main__ import main
from components.preprocess.deidentify import ENVIRONMENT_VARIABLE
from tests import disks
from tests.preprocess.test_run import KEY, arguments, digests_of, write_cohort


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_is_named_and_the_same_command_continues(workers: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_cohort(tmp_path / "raw")
    assert main(arguments(tmp_path, out="expected")) == 0
    capfd.readouterr()
    with disks.mounted(tmp_path / "disk", "60k") as disk:
        for room in range(60, 400, 40):
            disks.grow(disk, f"{room}k")
            if (code := main(arguments(tmp_path, f"workers={workers}", out="disk/shards"))) == 0:
                break
            lines = capfd.readouterr().err.splitlines()
            assert code == 2
            assert [line for line in lines if str(disk) in line and "no space left on device; free some space" in line] == lines[-1:]
            assert not list(disk.rglob(".*"))
            assert not disks.open_files(disk)
        assert room > 60
        assert digests_of(disk / "shards") == digests_of(tmp_path / "expected")
        assert [path.name for path in disk.iterdir()] == ["shards"]


@pytest.mark.parametrize("closed", ["raw/p3", "raw/p3/0.dcm", "out"])
def test_what_may_not_be_opened_is_named(closed: str, tmp_path: Path) -> None:
    write_cohort(tmp_path / "raw", patients=4)
    (tmp_path / "out").mkdir()
    (tmp_path / closed).chmod(0o444 if closed == "raw/p3" else 0)
    command = arguments(tmp_path, "workers=2", out="out/shards")
    done = subprocess.run(disks.restricted(sys.executable, "-m", "components", *command), capture_output=True, text=True)
    (tmp_path / closed).chmod(0o755)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert str(tmp_path / closed) in last
    assert "permission denied" in last.lower()
