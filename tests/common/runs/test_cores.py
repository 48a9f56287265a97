import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.common.runs import cores
from tests import ROOT


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with eight cores, whose control groups are files here; returns the group of this process."""
    own = Path(next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")).removeprefix("0::/"))
    (tmp_path / own).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / own


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", 8), ("300000 100000", 3), ("150000 100000", 2), ("5000 100000", 1), ("990000 100000", 8)]
)
def test_the_limit_of_a_container_counts(machine: Path, limit: str, expected: int) -> None:
    assert cores.cores() == 8
    (machine / "cpu.max").write_text(f"{limit}\n")
    assert cores.cores() == cores.threads() == expected


def test_the_processes_of_a_node_share_its_cores(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ranks, expected in ((1, 8), (2, 4), (3, 2), (16, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert cores.cores() == expected


@pytest.mark.parametrize("asked", ["", "0", "nonsense"])
def test_without_a_limit_there_are_as_many_cores_as_nproc_says(asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    assert cores.threads() == int(subprocess.run(["env", "-u", "OMP_NUM_THREADS", "nproc"], capture_output=True, check=True).stdout)


def test_a_number_that_was_asked_for_is_taken(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cores.threads() == 5
    assert cores.cores() == 8


@pytest.mark.parametrize(("gpus", "asked", "expected"), [("0", None, "3"), ("2", None, "1"), ("8", None, "1"), ("2", "5", "5")])
def test_in_a_pod_each_process_has_its_share_of_the_cores(
    machine: Path, monkeypatch: pytest.MonkeyPatch, gpus: str, asked: str | None, expected: str
) -> None:
    (machine / "cpu.max").write_text("300000 100000\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("CXR_GPUS", gpus)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    cores.prepare_openmp()
    assert os.environ["OMP_NUM_THREADS"] == expected


PREPARE = "from components.common.runs import cores; cores.prepare_openmp(); import torch"


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")])
def test_openmp_reads_the_policy_and_elsewhere_keeps_its_number_of_threads(given: dict[str, str], policy: str) -> None:
    """OpenMP itself prints what it has read."""
    left_out = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KUBERNETES_SERVICE_HOST")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "true", **given}
    said = subprocess.run([sys.executable, "-c", PREPARE], env=environment, capture_output=True, text=True, check=True).stderr
    assert f"OMP_WAIT_POLICY = '{policy}'" in said
    assert f"OMP_NUM_THREADS = '{len(os.sched_getaffinity(0))}'" in said
