"""The built images."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.containers.conftest import ROOT, Images, podman

pytestmark = pytest.mark.containers

SMALL = [
    "--params", "/opt/cxr/params.yaml", "--set", "simulate.patients=40", "--set", "simulate.size=64", "--set", "preprocess.size=32",
    "--set", "pretrain.epochs=1", "--set", "pretrain.batch_size=16", "--set", "pretrain.queue_size=32",
]  # fmt: skip


def inside(image: str, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return podman("run", "--rm", "--network=host", *options, image, *command, check=False)


def test_the_small_image_has_no_torch_and_runs_the_stages_without_it(images: Images) -> None:
    script = (
        "set -e; python -c 'import importlib.util as u; assert not u.find_spec(\"torch\")';"
        f"python -m components simulate --out data {' '.join(SMALL)};"
        f"python -m components preprocess --raw data --out shards {' '.join(SMALL)}; cat shards/run.json"
    )
    done = inside(images.cpu, "sh", "-c", script)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["stage"] == "preprocess"


def test_the_large_image_also_trains_without_a_gpu(images: Images, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    steps = ["simulate --out data", "preprocess --raw data --out shards", "pretrain --shards shards --out /results/backbone"]
    script = "set -e; " + "; ".join(f"python -m components {step} {' '.join(SMALL)}" for step in steps)
    done = inside(images.gpu, "sh", "-c", script, options=("--volume", f"{tmp_path}:/results"))
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "backbone" / "run.json").read_text())
    assert record["git"]["commit"] == _commit()


def test_the_large_image_has_the_compiler_that_torch_needs(images: Images) -> None:
    headers = "$(python -c 'import sysconfig; print(sysconfig.get_path(\"include\"))')"
    done = inside(images.gpu, "sh", "-c", f"echo '#include <Python.h>' | gcc -x c -fsyntax-only -I {headers} -")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_user_and_labels(images: Images, target: str) -> None:
    image = getattr(images, target)
    described = json.loads(podman("image", "inspect", image).stdout)[0]["Config"]
    assert described["User"] == "1000"
    assert described["Labels"]["org.opencontainers.image.revision"] == _commit()
    assert inside(image, "id", "-u").stdout.strip() == "1000"
    assert inside(image, "sh", "-c", "touch /opt/cxr/components/x").returncode, "the user must not be able to change the code"


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_no_secret_enters_an_image(images: Images, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images contain only code and lock files of the checkout, and nothing of the builder's environment."""
    listing = inside(getattr(images, target), "sh", "-c", "cd /opt/cxr && ls -A").stdout.split()
    profiles = [path.name for path in ROOT.glob("params*.yaml")]
    assert sorted(listing) == sorted(["components", "pipelines", *profiles, "study"])
    history = podman("history", "--no-trunc", "--format", "{{.CreatedBy}}", getattr(images, target)).stdout
    environment = json.loads(podman("image", "inspect", getattr(images, target)).stdout)[0]["Config"]["Env"]
    for word in ("AWS_SECRET", "CXR_PSEUDONYM_KEY", "MLFLOW_TRACKING_PASSWORD", "index-url", "PASSWORD="):
        assert word not in history and not any(word in item for item in environment)


def test_packages_are_those_of_the_locks(images: Images) -> None:
    for target in ("cpu", "gpu"):
        installed = inside(getattr(images, target), "pip", "list", "--format", "json").stdout
        versions = {normal(entry["name"]): entry["version"] for entry in json.loads(installed)}
        locked = [
            line.split()[0]
            for line in (ROOT / "docker" / f"{target}.lock").read_text().splitlines()
            if "==" in line and ";" not in line and line[0].isalpha()
        ]
        for name, _, version in (entry.partition("==") for entry in locked):
            assert versions[normal(name.partition("[")[0])] == version


def test_the_build_prints_the_sizes(images: Images) -> None:
    """Sizes are those reported by the engine, in GB (10^9 bytes)."""
    sizes = {}
    for target in ("cpu", "gpu"):
        (said,) = re.findall(rf"^cxr-{target}:tested ([0-9.]+) GB$", images.printed, re.MULTILINE)
        described = json.loads(podman("image", "inspect", getattr(images, target)).stdout)[0]
        sizes[target] = described["Size"]
        assert abs(float(said) * 1e9 - described["Size"]) < 0.01e9
    assert sizes["cpu"] < sizes["gpu"] / 3


def normal(name: str) -> str:
    """Normalises the name of a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _commit() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
