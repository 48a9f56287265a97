"""Compiled packages: what compiling needs, what packages hold, and that they are reproducible."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from components.__main__ import COMMANDS
from components.common.runs.storage import digest_file
from components.heads import HEADS
from components.params import Params, load
from pipelines import packages, parameters, resources, settings
from pipelines.settings import Settings
from tests import ROOT
from tests.pipelines.test_cluster import pod_of

WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "mlflow", "cv2", "pyarrow"):
            raise ImportError(f"compiling must not import {name}")
sys.meta_path.insert(0, Refuse())
from pipelines.__main__ import main
folder, *names = sys.argv[1:]
sys.exit(max(main(["compile", name, "--out", f"{folder}/{name}.yaml"]) for name in names))
"""
WITH_A_FOURTH_HEAD = """
import sys, types
from components import heads
from components.common.runs.params import Section
class Count(Section):
    epochs: int = 1
heads.HEADS["count"] = heads.Head("count", Count, "Counts", "count findings")
from components.classify import component
sys.modules["components.count.component"] = types.SimpleNamespace(count=component.classify)
from pipelines.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
COMPONENTS = sorted((ROOT / "components").glob("*/component.py"))
TRAINING = {"pretrain", *HEADS}


@pytest.fixture(scope="module")
def example() -> Settings:
    return settings.load()


@pytest.fixture(scope="module")
def params() -> Params:
    return load(ROOT / "params.yaml")


class Package:
    """A compiled package: its specs, and its containers by step."""

    def __init__(self, path: Path):
        self.text = path.read_text()
        documents = list(yaml.safe_load_all(self.text))
        self.spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        self.parameters = self.spec.root.input_definitions.parameters
        self.platform = json_format.ParseDict(documents[1], pipeline_spec_pb2.PlatformSpec())
        executors = documents[0]["deploymentSpec"]["executors"]
        self.containers: dict[str, Any] = {name.removeprefix("exec-"): one["container"] for name, one in executors.items()}
        kubernetes = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self.kubernetes: dict[str, Any] = {name.removeprefix("exec-"): one for name, one in kubernetes.items()}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, example: Settings, params: Params) -> Package:
    path = tmp_path_factory.mktemp("package") / "training.yaml"
    packages.compile_to(path, "training", example, params)
    return Package(path)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders with all packages, each compiled in a process with another hash seed."""
    folders = []
    for seed in ("1", "2"):
        folders.append(tmp_path_factory.mktemp("compiled"))
        command = [sys.executable, "-c", WITHOUT_TORCH, str(folders[-1]), *packages.PIPELINES]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.parametrize("name", sorted(packages.PIPELINES))
def test_compiling_needs_no_torch_and_gives_the_same_bytes(name: str, compiled: list[Path]) -> None:
    one, other = (folder / f"{name}.yaml" for folder in compiled)
    assert digest_file(one) == digest_file(other)
    assert Package(one).spec.pipeline_info.name == name


def test_changed_parameters_change_the_defaults(tmp_path: Path, example: Settings) -> None:
    paths = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for path, overrides in zip(paths, ([], ["pretrain.epochs=7"]), strict=True):
        packages.compile_to(path, "training", example, load(ROOT / "params.yaml", overrides))
    ours, theirs = (Package(path).parameters for path in paths)
    assert {name for name in ours if ours[name] != theirs[name]} == {"pretrain"}


def test_every_argument_of_a_run_is_a_parameter(tmp_path: Path, example: Settings, params: Params) -> None:
    for name in packages.PIPELINES:
        packages.compile_to(tmp_path / f"{name}.yaml", name, example, params)
        known = Package(tmp_path / f"{name}.yaml").parameters
        model = "models:/a/1" if name == "scoring" else ""
        assert set(parameters.arguments(name, params, "s3://b/raw", "s3://b/out", model=model)) == set(known)


def test_a_new_head_adds_a_step(tmp_path: Path) -> None:
    """A fourth entry in the table of heads needs no edit in pipelines/."""
    out = tmp_path / "package.yaml"
    command = [sys.executable, "-c", WITH_A_FOURTH_HEAD, "compile", "training", "--out", str(out), "--set", "count.epochs=7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package = Package(out)
    assert package.parameters["count"].default_value.string_value == '{"epochs": 7}'
    tasks = {name: task for component in package.spec.components.values() for name, task in component.dag.tasks.items()}
    (step,) = [task for task in tasks.values() if task.task_info.name == "count"]
    assert step.inputs.parameters["params"].component_input_parameter == "pipelinechannel--count"
    assert any(task.task_info.name == "register-count" for task in tasks.values())
    assert "accelerator" in package.containers["classify-2"]["resources"], "it gets the resources of heads"


def test_steps_are_the_stages(package: Package) -> None:
    stages = {"preprocess", "merge", "pretrain", *HEADS, "evaluate", "register"}
    registrations = {"register", *(f"register-{number}" for number in range(2, len(HEADS) + 1))}  # one per model, numbered by kfp
    assert set(package.containers) == stages | registrations | {"begin", "end"}


def test_only_training_gets_gpus(package: Package, example: Settings) -> None:
    for name, container in package.containers.items():
        accelerator = container["resources"].get("accelerator")
        kubernetes = package.kubernetes[name]
        assert bool(accelerator) == (name in TRAINING), name
        assert kubernetes.get("nodeSelector", {}).get("labels", {}) == (example.gpu.node_selector if name in TRAINING else {})
        shm = [mount for mount in kubernetes.get("emptyDirMounts", []) if mount["mountPath"] == "/dev/shm"]
        assert [mount["medium"] for mount in shm] == (["Memory"] if name in TRAINING else [])
        taints = {toleration["key"] for toleration in kubernetes.get("tolerations", [])}
        assert ("nvidia.com/gpu" in taints) == (name in TRAINING)
        assert ("cxr/spot" in taints) == (name in ("preprocess", "pretrain")), name
        assert ("nodeAffinity" in kubernetes) == (name in TRAINING)
    assert package.containers["pretrain"]["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert package.kubernetes["pretrain"]["emptyDirMounts"][0]["sizeLimit"] == "16Gi"


@pytest.mark.parametrize("pipeline", sorted(packages.PIPELINES))
def test_secrets_go_only_to_steps_that_need_them(pipeline: str, example: Settings, params: Params, tmp_path: Path) -> None:
    """Each step asks MLflow for the run of the pipeline. The pseudonym key goes to preprocess only."""
    packages.compile_to(tmp_path / "package.yaml", pipeline, example, params)
    for name, kubernetes in Package(tmp_path / "package.yaml").kubernetes.items():
        given = {secret["secretName"] for secret in kubernetes.get("secretAsEnv", [])}
        wanted = {"cxr-mlflow"} if name == "end" else {"cxr-s3", "cxr-mlflow"}
        assert given == (wanted | {"cxr-pseudonyms"} if name == "preprocess" else wanted), name


def test_the_webhook_goes_to_the_last_step_only(example: Settings, params: Params, tmp_path: Path) -> None:
    given = {"name": "cxr-webhook", "keys": {"url": "CXR_WEBHOOK_URL"}, "format": "teams"}
    secrets = example.secrets.model_copy(update={"webhook": settings.Webhook.model_validate(given)})
    packages.compile_to(tmp_path / "package.yaml", "training", example.model_copy(update={"secrets": secrets}), params)
    package = Package(tmp_path / "package.yaml")
    added = {"CXR_WEBHOOK_FORMAT": "teams", "CXR_RUN_PAGE": "https://kubeflow.example.org/pipeline/#/runs/details/"}
    for name, kubernetes in package.kubernetes.items():
        environment = {one["name"]: one["value"] for one in package.containers[name]["env"]}
        assert ({*added.items()} <= {*environment.items()}) == (name == "end") == bool(added.keys() & environment), name
        assert ("cxr-webhook" in [secret["secretName"] for secret in kubernetes["secretAsEnv"]]) == (name == "end"), name


def test_images_users_and_timeouts(package: Package, example: Settings) -> None:
    small = {"begin", "preprocess", "merge", "evaluate", "end"}
    for name, container in package.containers.items():
        assert container["image"] == example.image("cpu" if name in small else "gpu"), name
        assert "{commit}" not in container["image"]
        kubernetes = package.kubernetes[name]
        assert kubernetes["securityContext"] == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}
        assert not kubernetes.get("imagePullSecret"), "only if asked for"
        assert int(kubernetes["activeDeadlineSeconds"]) == round(example.step(name).timeout_hours * 3600)
        assert not any("pip install" in part for part in container["command"])


def test_work_in_progress_is_on_the_volume(package: Package) -> None:
    for name, kubernetes in package.kubernetes.items():
        mounts = [mount["mountPath"] for mount in kubernetes.get("pvcMount", [])]
        environment = {one["name"]: one["value"] for one in package.containers[name]["env"]}
        kept = name in resources.MOUNTS_WORK
        assert mounts == (["/work"] if kept else [])
        assert environment["CXR_WORK_DIR"] == ("/work" if kept else resources.SCRATCH)


def test_run_ids_come_from_the_pod_and_not_as_parameters(package: Package) -> None:
    for kubernetes in package.kubernetes.values():
        assert {"name": "KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"} in kubernetes["fieldPathAsEnv"]


def test_steps_are_tried_again_in_their_pod_and_in_others(package: Package, example: Settings) -> None:
    policies = {
        name: task.retry_policy
        for component in (package.spec.root, *package.spec.components.values())
        for name, task in component.dag.tasks.items()
    }
    assert policies["pretrain"].max_retry_count == 10
    assert (policies["pretrain"].backoff_duration.seconds, policies["pretrain"].backoff_factor) == (120, 1.0)
    assert policies["begin"].max_retry_count == 0
    for name, container in package.containers.items():
        given = example.step(name)
        assert container["command"][:4] == ["python3", "-m", "components.retry", "sh"], name
        assert {"name": "CXR_RETRIES", "value": str(given.retries)} in container["env"]
        assert {"name": "CXR_RETRY_SECONDS", "value": str(given.backoff_seconds)} in container["env"]
        if given.retries:  # Argo gives up once this has passed since the first attempt began
            longest = policies[name].backoff_max_duration.seconds
            assert longest >= (given.retries + 1) * given.timeout_hours * 3600 + given.retries * given.backoff_seconds, name


def test_only_the_first_step_is_never_cached(package: Package) -> None:
    cached = {name: task.caching_options.enable_cache for one in package.spec.components.values() for name, task in one.dag.tasks.items()}
    tasks = {name: value for name, value in cached.items() if name in package.containers}
    assert {name for name, value in tasks.items() if not value} == {"begin"}


def test_no_construct_is_used_that_kubeflow_or_local_runs_misread(package: Package) -> None:
    """There are no fields of loop items, no named loops, and no conditions on outputs with a name other than `Output`."""
    assert "parseJson" not in package.text
    groups = [(name, task) for component in package.spec.components.values() for name, task in component.dag.tasks.items()]
    loops = [(name, task) for name, task in groups if task.WhichOneof("iterator")]
    assert [task.task_info.name for _, task in loops] == [name for name, _ in loops]
    (condition,) = [task.trigger_policy.condition for _, task in groups if task.trigger_policy.condition]
    assert "pipelinechannel--evaluate-Output'] > inputs.parameter_values['pipelinechannel--min_auroc']" in condition


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.parent.name)
def test_components_are_short_and_import_kfp_alone(path: Path) -> None:
    """Modules import only kfp and the standard library; functions have at most ten lines around the `run` of the stage."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            body = [line for statement in node.body[1:] for line in ast.unparse(statement).splitlines()]
            assert len(body) <= 10, node.name
        elif isinstance(node, ast.ImportFrom):
            assert str(node.module).split(".")[0] in {*sys.stdlib_module_names, "kfp"}
        else:
            assert isinstance(node, ast.Expr), "its docstring"


def test_every_stage_of_a_pipeline_has_a_component() -> None:
    by_hand = {"validate"}
    assert {name.split()[0] for name in COMMANDS} - by_hand == {path.parent.name for path in COMPONENTS}


def test_steps_with_gpus_wait_in_the_queue(tmp_path: Path, example: Settings, params: Params) -> None:
    queue = settings.Queue(name="gpus", priority="night", topology="cloud.provider.com/topology-rack")
    with_queue = example.model_copy(update={"queue": queue})
    packages.compile_to(tmp_path / "package.yaml", "training", with_queue, params)
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "night"}
    for name, kubernetes in Package(tmp_path / "package.yaml").kubernetes.items():
        assert kubernetes.get("podMetadata", {}).get("labels", {}) == (labels if example.step(name).gpus else {}), name
    nodes = resources.describe_nodes(with_queue, 2)
    assert nodes["labels"] == labels
    assert nodes["annotations"] == {"kueue.x-k8s.io/podset-required-topology": "cloud.provider.com/topology-rack"}
    assert not resources.describe_nodes(example, 2)["labels"]


@pytest.mark.parametrize(("pipeline", "steps"), [("training", {"pretrain": 8, "classify": 2, "detect": 1}), ("study", {"classify": 2})])
def test_each_gpu_of_a_step_has_a_process(pipeline: str, steps: dict[str, int], tmp_path: Path, example: Settings, params: Params) -> None:
    changed = {name: example.step(name).model_copy(update={"gpus": count}) for name, count in steps.items()}
    packages.compile_to(tmp_path / "package.yaml", pipeline, example.model_copy(update={"steps": {**example.steps, **changed}}), params)
    package = Package(tmp_path / "package.yaml")
    found = {}
    for component in package.spec.components.values():
        for name, task in component.dag.tasks.items():
            if "processes" in task.inputs.parameters:
                found[name] = task.inputs.parameters["processes"].runtime_value.constant.number_value
    expected = {"training": {**steps, "invert": 1}, "study": {"model": 1, "model-2": 1, "model-3": 2}}
    assert found == expected[pipeline]


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("training", {}, {"pretrain": 1, "classify": 1, "detect": 1, "invert": 1, "at most": 3}),
        ("smoke", {"nodes": 4}, {"pretrain": 4, "classify": 1, "detect": 1, "invert": 1, "at most": 4}),
        ("study", {}, {"pretrain": 4, "classify": 4, "at most": 4}),
        ("sweep", {"nodes": 2}, {"pretrain": 2, "classify": 4, "at most": 4}),
        ("scoring", {}, {"at most": 0}),
    ],
)
def test_gpu_budget(name: str, changes: dict[str, Any], expected: dict[str, int], example: Settings, params: Params) -> None:
    runtime = params.runtime.model_copy(update=changes)
    assert resources.gpus(name, example, params.model_copy(update={"runtime": runtime})) == expected


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_the_pods_of_steps_are_valid(package: Package, version: str) -> None:
    for name, container in package.containers.items():
        kubernetes_validate.validate(pod_of(container, package.kubernetes[name]), version, strict=True)
