"""The steps of a run, from the nodes of its workflow."""

import copy
import json
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_server_api import ApiClient, V2beta1Run

from components.heads import HEADS
from components.params import Params
from pipelines import packages, progress, server, settings
from tests.pipelines import argo

REAL: dict[str, Any] = json.loads(Path(__file__).with_name("run_failed.json").read_text())
SKIPPED_REGISTRATIONS = {f"register-{head}": "left out" for head in HEADS}
ORDER = ["simulate", "begin", "preprocess", "merge", "pretrain", *HEADS, "evaluate", *SKIPPED_REGISTRATIONS, "end"]


@cache
def package(name: str) -> dict[str, Any]:
    """Returns the content of a package as the server does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "package.yaml")
        packages.compile_to(path, name, settings.load(), Params())
        return dict(zip(("pipeline_spec", "platform_spec"), yaml.safe_load_all(path.read_text()), strict=True))


def read(tasks: list[dict[str, Any]], ended: bool, content: dict[str, Any] | None = None) -> list[progress.Step]:
    """Reads tasks through the classes of the client."""
    answer = ApiClient()._ApiClient__deserialize({"run_details": {"task_details": tasks}}, V2beta1Run)
    nodes = [server._node(task) for task in answer.run_details.task_details]
    return progress.steps(content or package("smoke"), nodes, datetime.now(UTC), ended)


def states(outcomes: dict[str, Any], ended: bool = True, name: str = "smoke", **options: Any) -> dict[str, str]:
    tasks = argo.listing(package(name)["pipeline_spec"], outcomes, **options)
    return {step.name: step.state for step in read(tasks, ended, package(name))}


def test_the_nodes_of_the_tests_are_those_of_a_real_server() -> None:
    """A run whose first step fails, and whose last one fails, too."""

    def essence(tasks: list[dict[str, Any]]) -> set[tuple[str, str, frozenset[str]]]:
        below = [frozenset(child["pod_name"] for child in task.get("child_tasks", [])) for task in tasks]
        return {(task["display_name"], task.get("state", ""), ids) for task, ids in zip(tasks, below, strict=True)}

    spec = copy.deepcopy(package("smoke")["pipeline_spec"])
    steps = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    steps["pretrain"]["dependentTasks"].remove("begin")  # in the real run, pretraining had no starting point from there
    made = argo.listing(spec, {"simulate": "FAILED", "end": "FAILED"})
    assert essence(made) == essence(REAL["run_details"]["task_details"])


def test_a_real_failed_run() -> None:
    found = read(REAL["run_details"]["task_details"], ended=True)
    assert [step.name for step in found] == ORDER
    assert {step.name: step.state for step in found if step.state != "left out"} == {"simulate": "failed", "end": "failed"}
    simulate = found[0]
    assert simulate.minutes == pytest.approx(91 / 60)
    assert simulate.attempts == 1
    assert simulate.pod == "smoke-h7sx5-retry-system-container-impl-2531610705"


def test_a_successful_run() -> None:
    found = states({"preprocess#0": argo.CACHED, "begin": argo.CACHED})
    assert set(found) == {*ORDER, "preprocess 1/2", "preprocess 2/2"} - {"preprocess"}
    assert {name for name, state in found.items() if state == "cached"} == {"preprocess 1/2", "begin"}
    assert set(found.values()) == {"cached", "succeeded"}


@pytest.mark.parametrize(
    ("outcomes", "ended", "expected"),
    [
        ({"simulate": "PENDING"}, False, {"simulate": "pending", "begin": "waiting", "register-classify": "waiting", "end": "waiting"}),
        ({"merge": "RUNNING"}, False, {"preprocess 1/2": "succeeded", "merge": "running", "pretrain": "waiting"}),
        ({"preprocess#1": "FAILED"}, True, {"preprocess 1/2": "succeeded", "preprocess 2/2": "failed", "merge": "left out"}),
        ({"classify": "RUNNING", "detect": "PENDING"}, False, {"classify": "running", "invert": "succeeded", "evaluate": "waiting"}),
        ({"detect": "FAILED"}, True, {"detect": "failed", "classify": "succeeded", **SKIPPED_REGISTRATIONS, "end": "succeeded"}),
        ({"condition-3": argo.SKIPPED}, True, {"register-classify": "skipped", "register-detect": "succeeded", "evaluate": "succeeded"}),
        ({"register-3": "FAILED"}, True, {"register-detect": "succeeded", "register-invert": "failed"}),
    ],
)
def test_states(outcomes: dict[str, Any], ended: bool, expected: dict[str, str]) -> None:
    found = states(outcomes, ended)
    assert {name: found[name] for name in expected} == expected


def test_attempts_and_the_pod_of_the_last() -> None:
    tasks = argo.listing(package("smoke")["pipeline_spec"], {"pretrain": ("RUNNING", 3)})
    (pretrain,) = [step for step in read(tasks, ended=False) if step.name == "pretrain"]
    assert (pretrain.state, pretrain.attempts) == ("running", 3)
    (executor,) = [task for task in tasks if task["display_name"] == "executor" and task["state"] == "RUNNING"]
    assert pretrain.pod.rpartition("-")[2] in {child["pod_name"].rpartition("-")[2] for child in executor["child_tasks"]}
    assert pretrain.minutes is not None


def test_a_driver_that_fails_is_the_failure_of_its_step() -> None:
    tasks = argo.listing(package("smoke")["pipeline_spec"], {"merge": "RUNNING"})
    for task in tasks:
        if task["display_name"] in ("merge-driver", "merge-driver(0)"):
            task["state"] = "FAILED"
        elif task["display_name"] == "merge":
            task["state"] = ""
    (merge,) = [step for step in read(tasks, ended=True) if step.name == "merge"]
    assert merge.state == "failed"
    assert "-system-container-driver-" in merge.pod


@pytest.mark.parametrize("iterations", [1, 12])
def test_every_iteration_of_a_study_is_a_step(iterations: int) -> None:
    found = states({}, name="study", iterations=iterations)
    assert f"preprocess {iterations}/{iterations}" in found
    assert set(found.values()) == {"succeeded"}


def test_before_there_are_nodes() -> None:
    assert [(step.name, step.state) for step in progress.steps(package("smoke"), [], datetime.now(UTC), False)] == [
        (name, "waiting") for name in ORDER
    ]


def test_pods_with_labels_have_another_name() -> None:
    """Kubeflow's compiler names the template of pods with labels or annotations after their numbers."""
    labelled = {**package("smoke"), "platform_spec": json.loads(json.dumps(package("smoke")["platform_spec"]))}
    executors = labelled["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors["exec-begin"]["podMetadata"] = {"labels": {"a": "b", "c": "d"}, "annotations": {"e": "f"}}
    (begin,) = [step for step in read(argo.listing(labelled["pipeline_spec"], {}), True, labelled) if step.name == "begin"]
    assert "-metadata-1-2-system-container-impl-" in begin.pod
