"""Each step with just the environment of its pod, which the compiled package says, against S3 and an MLflow server with a login."""

import subprocess
import sys
import uuid
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import local
from kfp.local import subprocess_task_handler
from mlflow import MlflowClient

from components.common.runs.provenance import KFP_VARIABLE
from components.params import Params
from pipelines import packages, parameters, settings
from pipelines.resources import RUN_ID_FIELD
from tests import ROOT, mlflow_server, seaweed
from tests.mlflow_server import LOGIN
from tests.pipelines.conftest import PARAMS

STUDY = {"arms": ["moco"], "base_epochs": 1, "reference": "moco", "fractions": [1.0], "positive_rates": [], "seeds": [0]}
EVERYWHERE = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "GIT_COMMIT": "c0ffee"}
"""Variables of the images. PYTHONPATH stands for their working directory."""


class Pods:
    """The environments of the pods of a package.

    Args:
        package: a compiled package.
        secrets: values by name of the secret and key.
        home: the home folder of the user of the image.
    """

    def __init__(self, package: Path, secrets: dict[tuple[str, str], str], home: Path):
        spec, platform = (document for document in yaml.safe_load_all(package.read_text()))
        kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self._run, self._found = f"run-{uuid.uuid4().hex[:8]}", dict[str, dict[str, str]]()
        self._secrets, self._base = secrets, {**EVERYWHERE, "HOME": str(home)}
        for name, executor in spec["deploymentSpec"]["executors"].items():
            container = executor["container"]
            environment = self._environment(container, kubernetes[name])
            known = self._found.setdefault(_component([*container["command"], *container["args"]]), environment)
            assert environment == known, "steps of one component have the same variables"
        self.started: set[str] = set()

    def run(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Takes the place of the function of kfp that starts the process of a step."""
        component = _component(full_command)
        self.started.add(component)
        done = subprocess.run(full_command, env=self._found[component], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        sys.stderr.write(done.stdout)
        return done.returncode

    @property
    def components(self) -> set[str]:
        return set(self._found)

    def _environment(self, container: dict[str, Any], kubernetes: dict[str, Any]) -> dict[str, str]:
        found = self._base | {one["name"]: one["value"] for one in container["env"]}
        for secret in kubernetes.get("secretAsEnv", []):
            found |= {one["envVar"]: self._secrets[secret["secretName"], one["secretKey"]] for one in secret["keyToEnv"]}
        for one in kubernetes["fieldPathAsEnv"]:
            assert (one["name"], one["fieldPath"]) == (KFP_VARIABLE, RUN_ID_FIELD)
            found[KFP_VARIABLE] = self._run
        return found


def _component(command: list[str]) -> str:
    return command[command.index("--function_to_execute") + 1]


@pytest.mark.services
def test_each_step_runs_in_the_environment_of_its_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`smoke` and, on its raw files, `study`: all components but `launch`, which needs Kubernetes."""
    params = Params.model_validate(PARAMS | {"study": STUDY})
    for folder in ("s3", "home", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    with seaweed.serve(tmp_path / "s3") as store, mlflow_server.serve(tmp_path / "mlflow", login=True) as server:
        example = yaml.safe_load(settings.EXAMPLE.read_text())
        steps = {name: {"retries": 0} for name in settings.STEPS}
        variables = {name: store.pop(name) for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")}
        variables |= {"MLFLOW_TRACKING_URI": server.address, "OMP_NUM_THREADS": "1"}
        work = {"claim": "cxr-work", "path": str(tmp_path / "work")}
        changed = {"root": f"s3://{seaweed.BUCKET}/artifacts", "partitions": 1, "steps": steps, "environment": variables, "work": work}
        given = settings.Settings.model_validate(example | changed)
        values = {**store, **LOGIN, "CXR_PSEUDONYM_KEY": "k" * 64}
        named = [secret for secret in (given.secrets.s3, given.secrets.mlflow, given.secrets.pseudonyms) if secret]
        secrets = {(secret.name, key): values[variable] for secret in named for key, variable in secret.keys.items()}

        raw, ran = None, set[str]()
        for name in ("smoke", "study"):
            packages.compile_to(tmp_path / f"{name}.yaml", name, given, params)
            pods = Pods(tmp_path / f"{name}.yaml", secrets, tmp_path / "home")
            monkeypatch.setattr(subprocess_task_handler, "run_local_subprocess", pods.run)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about resources, which local runs ignore
                local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "ui"), raise_on_error=True)
                packages.build(name, given, params)(**parameters.arguments(name, params, raw, given.root))
            assert pods.started == pods.components
            ran |= pods.started
            raw = raw or _cohort(store | variables)
        assert {"simulate", "begin", "register", "end", "plan", "model", "compare"} <= ran

        for variable, value in LOGIN.items():
            monkeypatch.setenv(variable, value)
        client = MlflowClient(server.address)
        runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
        assert {one.info.status for one in runs} == {"FINISHED"}
        assert {model.name for model in client.search_registered_models()} == {"cxr-classify", "cxr-detect", "cxr-invert"}


def _cohort(environment: dict[str, str]) -> str:
    """Returns the folder of the files that `smoke` has simulated."""
    code = "from components.common.runs import storage; print(next(iter(storage.listing('s3://bucket/artifacts/simulate'))).path)"
    found = subprocess.run([sys.executable, "-c", code], env={**EVERYWHERE, **environment}, capture_output=True, text=True, check=True)
    return f"s3://{seaweed.BUCKET}/artifacts/simulate/{found.stdout.split('/')[0].strip()}"
