"""The commands `status` and `cancel`, and `submit --wait`, against a double of the API."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from components.common.errors import UserError
from pipelines import cluster, follow, progress, server
from pipelines.__main__ import main
from pipelines.settings import EXAMPLE
from tests.pipelines import argo, double, kubernetes_double
from tests.pipelines.conftest import KUBECONFIG, submit

REAL: dict[str, Any] = json.loads(Path(__file__).with_name("run_failed.json").read_text())
POD = "smoke-h7sx5-retry-system-container-impl-2531610705"  # of `simulate` in that run
LOG = """I1129 06:25:17.402311      20 launcher_v2.go:194] input ComponentSpec:{
[KFP Executor 2026-11-29 06:25:18,101 INFO]: Looking for component `simulate` in --component_module_path
06:25:20 the cohort is being written
simulate: MLflow at http://mlflow.cxr.svc:5000 asks for a password; set MLFLOW_TRACKING_PASSWORD
I1129 06:25:21.117332      20 launcher_v2.go:163] publish FAILED
F1129 06:25:21.123456      20 main.go:59] failed to execute component: exit status 2
time="2026-11-29T06:25:21.400Z" level=info msg="sub-process exited" argo=true error="<nil>"
"""
"""The log of a step with the lines that Kubeflow's launcher and Argo's executor add."""
LINK = "http://mlflow.cxr.svc:5000/#/experiments/3/runs/0123456789abcdef"


def status(kubeflow: double.Double, *more: str) -> int:
    (identity,) = kubeflow.runs
    return main(["status", identity, "--host", kubeflow.url, *more])


def pod_of(kubeflow: double.Double, step: str) -> str:
    """Returns the name of the pod of a step of the only run."""
    (run,) = kubeflow.runs.values()
    package = kubeflow.versions[run["pipeline_version_reference"]["pipeline_version_id"]]["pipeline_spec"]
    nodes = [
        progress.Node(
            task["display_name"], task.get("state", ""), None, None, frozenset(child["pod_name"] for child in task["child_tasks"])
        )
        for task in argo.listing(package["pipeline_spec"], {})
    ]
    (pod,) = [one.pod for one in progress.steps(package, nodes, datetime.now(UTC), False) if one.name == step]
    return pod


def test_wait_prints_each_change_of_a_step_and_the_end(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(kubeflow, "--wait") == 0
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()[2:-2] if line[:1].isdigit()]
    assert [line.partition(",")[0] for line in lines[:5]] == [
        "[0/12] begin: pending",
        "[2/13] begin: succeeded",
        "[2/13] preprocess 1/2: cached",
        "[2/13] preprocess 2/2: running",
        "[4/13] preprocess 2/2: succeeded",
    ]
    assert any(line.startswith("[4/13] pretrain: pending, attempt 2") for line in lines)
    assert any(line.startswith("[13/13] register-invert: succeeded") for line in lines)


def test_only_steps_of_ours_are_shown(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(kubeflow, "--wait", name="smoke") == 0
    assert status(kubeflow) == 0
    shown = capsys.readouterr().out
    for inside in ("driver", "executor", "iteration", "condition", "exit-handler", "for-loop", "root", "(0)", "register-2"):
        assert inside not in shown


def test_a_failed_run(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer of a real server: the sentence of the step that failed with exit code 2 is shown, and nothing of Argo."""
    kubeflow.frames = [("RUNNING", None), ("FAILED", REAL["run_details"]["task_details"])]
    kubeflow.logs[POD] = LOG
    assert submit(kubeflow, "--wait", name="smoke") == 1
    out = capsys.readouterr().out
    assert "simulate: failed, 1.5 min" in out
    assert "left out" not in out
    assert "failed in simulate, end" in out
    assert "\nsimulate:\n  simulate: MLflow at http://mlflow.cxr.svc:5000 asks for a password; set MLFLOW_TRACKING_PASSWORD\n" in out
    assert "launcher" not in out
    assert "\nend: see `kubectl -n cxr logs smoke-h7sx5-retry-system-container-impl-3669438893 -c main`\n" in out
    assert status(kubeflow) == 1
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].split() == ["simulate", "failed,", "1.5", "min"]
    assert "asks for a password" in shown


@pytest.mark.parametrize("has_ui", [True, False])
def test_logs_come_from_the_ui_or_the_api(kubeflow: double.Double, capsys: pytest.CaptureFixture[str], has_ui: bool) -> None:
    kubeflow.has_ui = has_ui
    kubeflow.frames = [("FAILED", REAL["run_details"]["task_details"])]
    kubeflow.logs[POD] = "".join(f"line {number}\n" for number in range(50)) + "ValueError: odd\n"
    assert submit(kubeflow, "--wait", name="smoke") == 1
    out = capsys.readouterr().out
    assert "  line 31\n" in out
    assert "  ValueError: odd\n" in out
    assert "  line 30\n" not in out


def test_logs_come_from_kubernetes_otherwise(
    kubeflow: double.Double, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fake:
        def __init__(self, namespace: str | None):
            self.namespace = namespace

        def log(self, pod: str) -> str:
            if pod != POD or self.namespace != "cxr":
                raise UserError("Kubernetes: answers 404")
            return LOG

    monkeypatch.setattr(follow, "Cluster", Fake)
    kubeflow.frames = [("FAILED", REAL["run_details"]["task_details"])]
    assert submit(kubeflow, "--wait", name="smoke") == 1
    assert "asks for a password" in capsys.readouterr().out


def test_a_single_user_kubeflow_runs_everything_in_its_own_namespace(
    kubeflow: double.Double, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kubeflow.multi_user = False
    kubeflow.frames = [("FAILED", REAL["run_details"]["task_details"])]
    (tmp_path / "settings.yaml").write_text(re.sub("(?m)^  namespace: .*$", "", EXAMPLE.read_text()))
    assert submit(kubeflow, "--wait", "--settings", str(tmp_path / "settings.yaml"), name="smoke") == 1
    assert "see `kubectl -n kubeflow logs smoke-" in capsys.readouterr().out


def test_without_a_kubeconfig(kubeflow: double.Double) -> None:
    with pytest.raises(UserError, match="no kubeconfig"):
        cluster.Cluster("cxr")


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (LOG, ["simulate: MLflow at http://mlflow.cxr.svc:5000 asks for a password; set MLFLOW_TRACKING_PASSWORD"]),
        (LOG.replace("exit status 2", "exit status 1"), LOG.splitlines()[2:4]),
        ("", []),
        ("Killed\n\n", ["Killed"]),
    ],
)
def test_last_lines(log: str, expected: list[str]) -> None:
    assert follow.last_lines(log) == expected


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("", "http://mlflow.cxr.svc:5000"),
        ("https://mlflow.example.org/", "https://mlflow.example.org"),
        ("http://a:secret@host:5", "http://host:5"),
    ],
)
def test_the_link_to_mlflow(
    kubeflow: double.Double, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str, base: str
) -> None:
    """It stands in the log of `begin`; the address may be another one from here."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert submit(kubeflow) == 0
    kubeflow.logs[pod_of(kubeflow, "begin")] = f"10:00:00 MLflow run: {LINK}\n"
    (identity,) = kubeflow.runs
    assert follow.follow(server.KubeflowServer(kubeflow.url, None), identity) == 0
    assert capsys.readouterr().out.endswith(f"MLflow: {LINK.replace('http://mlflow.cxr.svc:5000', base)}\n")
    kubeflow.logs.clear()
    assert status(kubeflow) == 0
    assert capsys.readouterr().out.endswith(f"MLflow: the runs with the tag kfp.run_id = {identity}\n")


def test_wait_outlasts_a_server_that_is_unavailable_for_a_while(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(kubeflow) == 0
    kubeflow.broken = 3
    (identity,) = kubeflow.runs
    assert follow.follow(server.KubeflowServer(kubeflow.url, None), identity) == 0
    assert "succeeded" in capsys.readouterr().out


def test_wait_ends_when_the_token_has_expired(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(kubeflow) == 0
    (identity,) = kubeflow.runs
    kubeflow.token = "another"
    with pytest.raises(UserError, match=r"answers 401, Unauthenticated; set KFP_TOKEN, .*; the run continues, see `python -m pipelines st"):
        follow.follow(server.KubeflowServer(kubeflow.url, None), identity)


def test_a_log_that_is_json_is_shown_as_it_is(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.frames = [("FAILED", REAL["run_details"]["task_details"])]
    kubeflow.logs[POD] = '{"error": null}\n'
    assert submit(kubeflow, "--wait", name="smoke") == 1
    assert '\n  {"error": null}\n' in capsys.readouterr().out


def test_status_and_cancel(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(kubeflow) == 0
    (identity,) = kubeflow.runs
    capsys.readouterr()
    assert status(kubeflow) == 0
    assert "begin" in capsys.readouterr().out
    assert main(["cancel", identity, "--host", kubeflow.url]) == 0
    assert status(kubeflow) == 0
    assert status(kubeflow) == 1
    assert "canceled" in capsys.readouterr().out
    assert main(["cancel", identity, "--host", kubeflow.url]) == 0
    assert "has already ended" in capsys.readouterr().out


def on_nodes(kubeflow: double.Double) -> str:
    """Starts a run that pretrains on two nodes, and returns its id."""
    kubeflow.frames = [("RUNNING", {"launch": "RUNNING"})]
    assert submit(kubeflow, "--set", "runtime.nodes=2") == 0
    (identity,) = kubeflow.runs
    return identity


def test_status_shows_the_nodes_of_a_trainjob_and_cancel_removes_it(
    kubeflow: double.Double, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    identity = on_nodes(kubeflow)
    with kubernetes_double.serve() as kubernetes:
        kubernetes_double.write_kubeconfig(tmp_path / "config", kubernetes)
        monkeypatch.setattr(KUBECONFIG, str(tmp_path / "config"))
        kubernetes.frames = [
            (None, [kubernetes_double.pod("p-0"), kubernetes_double.pod("p-1", 1, unscheduled="Insufficient nvidia.com/gpu")])
        ]
        kubernetes.add({"metadata": {"name": "pretrain-1", "labels": {cluster.RUN_LABEL: identity}}, "spec": {}})
        assert status(kubeflow) == 0
        shown = capsys.readouterr().out
        assert "    pretrain-1: node 0 runs\n    pretrain-1: node 1 waits for a place: Insufficient nvidia.com/gpu\n" in shown
        assert main(["cancel", identity, "--host", kubeflow.url]) == 0
        assert "TrainJob pretrain-1 is deleted" in capsys.readouterr().out
        assert not kubernetes.jobs


def test_without_kubernetes_the_command_for_its_trainjob_is_printed(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    identity = on_nodes(kubeflow)
    assert status(kubeflow) == 0
    assert f"`kubectl -n cxr get trainjobs,pods -l cxr/pipeline-run={identity}` (Kubernetes: no kubeconfig" in capsys.readouterr().out
    assert main(["cancel", identity, "--host", kubeflow.url]) == 2
    out, err = capsys.readouterr()
    assert "is being cancelled" in out
    assert err.endswith(f"its TrainJob continues, delete it: kubectl -n cxr delete trainjobs -l cxr/pipeline-run={identity}\n")


def test_a_deleted_version_leaves_the_state(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(kubeflow) == 0
    kubeflow.versions.clear()
    (run,) = kubeflow.runs.values()
    run["frames"] = [("SUCCEEDED", None)]
    capsys.readouterr()
    assert status(kubeflow) == 0
    assert capsys.readouterr().out.rstrip().endswith(": succeeded")
