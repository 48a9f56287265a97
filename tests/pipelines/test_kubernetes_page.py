"""The commands in docs/kubernetes.md, run as they stand there, with stand-ins for what needs a cluster or a registry."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import server
from tests import ROOT
from tests.pipelines import double
from tests.pipelines.test_deploy import CONFIGURATION

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
KUBECTL = shutil.which("kubectl")
# Refuses files that do not exist and folders that kustomize does not build.
STAND_IN = f"""#!/bin/bash
echo "kubectl $*" >> "$CALLS"
case "$*" in
  *"get configmap"*) cat "$CONFIGURATION" ;;
  *"apply -f -"*) cat >> "$CALLS" ;;
  *"apply -k "*) {KUBECTL} kustomize "${{@: -1}}" >> "$CALLS" ;;
  *"apply -f "*) test -f "${{@: -1}}" ;;
  *--patch-file*) test -f "${{@: -1}}" ;;
  *"rollout restart"*|*"create secret"*|*"create serviceaccount"*|*"create rolebinding"*|*"create token"*) ;;
  *) exit 64 ;;
esac
"""
RECORDER = '#!/bin/bash\necho "$(basename "$0") $*" >> "$CALLS"\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository, a home folder, and programs in front of the real ones."""
    for name in ("repository", "home", "programs"):
        (tmp_path / name).mkdir()
    for entry in ("deploy", "pipelines", "params.yaml", "params.paper.yaml", "study", ".git"):
        (tmp_path / "repository" / entry).symlink_to(ROOT / entry)
    for name, content in (("kubectl", STAND_IN), ("podman", RECORDER), ("make", RECORDER)):
        (tmp_path / "programs" / name).write_text(content)
        (tmp_path / "programs" / name).chmod(0o755)
    (tmp_path / "configuration.yaml").write_text(CONFIGURATION)
    environment = {"HOME": tmp_path / "home", "CALLS": tmp_path / "calls", "CONFIGURATION": tmp_path / "configuration.yaml"}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    for variable in (server.TOKEN_VARIABLE, server.TOKEN_FILE_VARIABLE, server.COOKIE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "programs"), str(Path(sys.executable).parent), os.environ["PATH"]]))
    return tmp_path


def run(place: Path, script: str) -> str:
    """Runs commands, stops at the first that fails, and returns what the stand-ins were called with."""
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=place / "repository", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = place / "calls"
    return calls.read_text() if calls.exists() else ""


def blocks(*words: str) -> str:
    found = [block for block in BLOCKS if any(word in block for word in words)]
    assert found
    return "".join(found)


@pytest.mark.skipif(not KUBECTL, reason="kubectl is not installed")
def test_commands_for_the_cluster(place: Path) -> None:
    calls = run(place, blocks("kubectl"))
    assert "retryPolicy: Always" in calls
    assert "name: cxr-work-owner" in calls, "kustomize has built the manifests"


def test_images_for_a_cluster_without_internet(place: Path) -> None:
    calls = run(place, blocks("deploy/images.txt"))
    assert "podman push quay.io/argoproj/argoexec:v4.1.2 registry.example.org/argoproj/argoexec:v4.1.2" in calls
    assert calls.count("podman pull") == calls.count("podman push") >= 5


def test_the_list_of_images_is_complete() -> None:
    listed = set((ROOT / "deploy" / "images.txt").read_text().split())
    files = [*(ROOT / "deploy").glob("*.yaml"), ROOT / "docker" / "compose.yaml"]
    used = {name for path in files for name in re.findall(r"(?m)^\s*(?:- )?image: (\S+)", path.read_text())}
    used -= {"replaced-by-the-trainjob"}
    used |= set(re.findall(r"BASE_IMAGE=(\S+)", (ROOT / "docker" / "Dockerfile").read_text())) - {"..."}
    assert {name.partition(":")[0] if name.startswith("cxr-") else name for name in used} <= listed


@pytest.mark.slow
def test_commands_of_the_pipelines(place: Path) -> None:
    """From the settings file to the first run, against a double of the API. `doctor` has tests of its own."""
    with double.serve() as kubeflow:
        copy = blocks("cp pipelines/settings.yaml")
        adapted = copy.replace("\n", f"\nsed -i 's|https://kubeflow.example.org/pipeline|{kubeflow.url}|' settings.yaml\n", 1)
        submit = "\n".join(line for line in blocks("pipelines submit smoke").splitlines() if " doctor " not in line)
        run(place, f"{adapted}\n{submit}\n{blocks('pipelines schedule')}")
        assert len(kubeflow.runs) == 2
        assert [one["status"] for one in kubeflow.recurring.values()] == ["DISABLED"]
    (place / "outputs").mkdir()
    run(place, blocks("pipelines clean").replace("--settings settings.yaml", f"--root {place / 'outputs'}"))


def test_every_command_is_run_by_a_test() -> None:
    """What is left out needs images, which tests/containers builds."""
    tested = (
        "kubectl",
        "deploy/images.txt",
        "cp pipelines/settings.yaml",
        "pipelines submit smoke",
        "pipelines schedule",
        "pipelines clean",
    )
    left = [block for block in BLOCKS if not any(word in block for word in tested)]
    assert [block.split()[0:2] for block in left] == [["make", "images"], ["export", "DOCKER_HOST=unix:///tmp/podman.sock"]]
