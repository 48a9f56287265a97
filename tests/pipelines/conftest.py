"""A tiny cohort, settings for local runs, and a double of Kubeflow Pipelines."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from kfp import local
from kfp.components import load_component_from_text
from kfp.dsl import PipelineTask

from components.common.runs.provenance import KFP_VARIABLE
from components.params import Params, load
from components.simulate.run import run as simulate
from pipelines import follow, packages, server
from pipelines.__main__ import main
from pipelines.settings import STEPS, Settings
from tests import ROOT
from tests.pipelines import double

RAW = "s3://bucket/raw"
KUBECONFIG = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"  # its client reads the variable when it is imported

SETTINGS: dict[str, Any] = {
    "root": "s3://bucket/artifacts",
    "heads": ["classify"],
    "partitions": 2,
    "images": {"cpu": "registry/python-cpu:1", "gpu": "registry/python-gpu:1"},
    "secrets": {"s3": {"name": "s3", "keys": {"key": "AWS_ACCESS_KEY_ID"}}},
}
PARAMS: dict[str, Any] = {
    "simulate": {"patients": 30, "size": 64},
    "preprocess": {"size": 32, "parts": 2},
    "pretrain": {
        **{"arch": "resnet18", "epochs": 3, "batch_size": 8, "queue_size": 16, "shuffle_groups": 2, "dim": 16},
    },
    "classify": {"arch": "resnet18", "epochs": 1, "batch_size": 8},
    "detect": {"arch": "resnet18", "epochs": 1, "batch_size": 8, "channels": 64},
    "invert": {
        **{"arch": "resnet18", "size": 16, "latent_dim": 8, "mapping_layers": 2, "channel_base": 128, "channel_max": 16},
        **{"gan_epochs": 1, "gan_batch_size": 8, "epochs": 1, "batch_size": 8, "refine_steps": 1},
    },
    "evaluate": {"resamples": 100, "min_positives": 1},
    "register": {"min_auroc": 0.0, "resamples": 100},
    "runtime": {"workers": 1, "checkpoint_minutes": 0},
}


class Workplace:
    """A cohort, and a folder with a params file and a settings file."""

    def __init__(self, folder: Path, raw: Path):
        self.folder, self.raw, self.out = folder, raw, folder / "out"
        (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))

    @property
    def params(self) -> Params:
        return load(self.folder / "params.yaml")

    def settings(self, changes: dict[str, Any] | None = None, **retries: int) -> str:
        """Writes a settings file; `retries` by step, without a delay."""
        steps = {name: {"retries": retries.get(name, 0), "backoff_seconds": 0} for name in STEPS}
        path = self.folder / "settings.yaml"
        path.write_text(yaml.safe_dump({**SETTINGS, "steps": steps, **(changes or {})}))
        return str(path)

    def start(self, seed: int) -> str:
        """Writes a starting point of pretraining, always to the same file."""
        torch.manual_seed(seed)
        torch.save(torchvision.models.resnet18().state_dict(), self.folder / "start.pth")
        return str(self.folder / "start.pth")

    def output(self, stage: str) -> Path:
        """Returns the only finished output of a stage."""
        (found,) = [path.parent for path in self.out.glob(f"{stage}/*/run.json")]
        return found


def isolate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the environment variables that a local run sets, and runs it in a folder of its own."""
    for name in ("PYTHONPATH", "KFP_RUN_ID", "MLFLOW_RUN_ID"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(folder)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms that tests read and do not change."""
    folder = tmp_path_factory.mktemp("cohort") / "raw"
    simulate(out=str(folder), **Params.model_validate(PARAMS).arguments("simulate"))
    return folder


@pytest.fixture
def workplace(tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    isolate(tmp_path, monkeypatch)
    return Workplace(tmp_path, cohort)


@pytest.fixture(scope="package", autouse=True)
def _compiled_once() -> Iterator[None]:
    """Compiles each pipeline once for the same settings and parameters, since that takes seconds."""
    made: dict[str, bytes] = {}
    compile_to = packages.compile_to

    def reuse(path: Path, name: str, settings: Settings, params: Params) -> None:
        key = f"{name} {settings.model_dump_json()} {params.model_dump_json(by_alias=True)}"
        if key not in made:
            compile_to(path, name, settings, params)
            made[key] = path.read_bytes()
        path.write_bytes(made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "compile_to", reuse)
        # A check of kfp that looks up the source of every frame of the stack, for each setting of each step: most of the time.
        patch.setattr(PipelineTask, "_ensure_container_spec_exists", lambda task: None)
        yield


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[double.Double]:
    """A double of Kubeflow Pipelines, without credentials for it, for Kubernetes or for MLflow on this machine."""
    for name in (server.TOKEN_VARIABLE, server.TOKEN_FILE_VARIABLE, server.COOKIE_VARIABLE, "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(KUBECONFIG, str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(ROOT)
    with double.serve() as running:
        yield running


def run_schedule(kubeflow: double.Double, night: str, raw: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the package of the only schedule on this machine, from what the server has been sent, with other folders."""
    (recurring,), (version,) = kubeflow.recurring.values(), kubeflow.versions.values()
    package = load_component_from_text(yaml.safe_dump_all(version["pipeline_spec"].values()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(KFP_VARIABLE, night)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root / "ui"), raise_on_error=True)
    package(**{**recurring["runtime_config"]["parameters"], "raw": str(raw), "root": str(root)})


def submit(kubeflow: double.Double, *more: str, name: str = "training") -> int:
    raw = [] if name == "smoke" else ["--raw", RAW]
    return main(["submit", name, "--host", kubeflow.url, *raw, *more])
