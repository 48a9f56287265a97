"""The MLflow run of a pipeline, and the checks of its first step."""

import hashlib
import json
import time
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from mlflow import MlflowClient

from components.common.errors import UserError
from components.common.runs import tracking
from pipelines import kfp_components, pipeline_run
from pipelines.pipeline_run import begin, digest_listing, end


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    monkeypatch.setenv("KFP_RUN_ID", f"run-of-{request.node.name}")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.dcm").write_bytes(b"a")
    return str(tmp_path / "raw")


def start(raw: str) -> tuple[str, str]:
    """Begins a pipeline; returns the ids of its MLflow run and of the run of a stage, which is still open."""
    begin(name="training", raw=raw, root=str(Path(raw).parent / "out"), tags={"data.dvc.md5": "1234"})
    parent = tracking.pipeline_run_id()
    assert parent
    client = MlflowClient(tracking.uri())
    tags = {"kfp.run_id": client.get_run(parent).data.tags["kfp.run_id"]}
    return parent, client.create_run(tracking.experiment(client, "pretrain"), tags=tags).info.run_id


def statuses(*runs: str) -> list[str]:
    return [MlflowClient(tracking.uri()).get_run(run).info.status for run in runs]


def test_a_second_attempt_finds_the_run(raw: str) -> None:
    parent, _ = start(raw)
    begin(name="training", raw=raw, root=str(Path(raw).parent / "out"), tags={})
    assert tracking.pipeline_run_id() == parent
    tags = MlflowClient(tracking.uri()).get_run(parent).data.tags
    assert tags["data.dvc.md5"] == "1234"
    assert not [value for value in tags.values() if str(Path(raw).parent) in value], "addresses may name a hospital"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("SUCCEEDED", ["FINISHED", "FAILED"]),
        ("FAILED", ["FAILED", "FAILED"]),
        ("CANCELLED", ["KILLED", "KILLED"]),
        ("RUNNING", ["FAILED", "FAILED"]),
    ],
)
def test_end_closes_open_runs(raw: str, state: str, expected: list[str]) -> None:
    """This includes the run of a stage whose process was killed. If the state is RUNNING, the states of the stages decide."""
    runs = start(raw)
    end(state=state)
    assert statuses(*runs) == expected


def test_the_run_of_the_pipeline_sums_gpu_hours(raw: str, caplog: pytest.LogCaptureFixture) -> None:
    parent, stage = start(raw)
    client = MlflowClient(tracking.uri())
    for epoch, hours in enumerate((1.5, 4.0)):  # the last value counts
        client.log_metric(stage, "gpu_hours", hours, step=epoch)
    tags = client.get_run(stage).data.tags
    invert = client.create_run(tracking.experiment(client, "invert"), tags=tags).info.run_id
    client.log_metric(invert, "gan_gpu_hours", 0.5)
    client.log_metric(invert, "gpu_hours", 0.25)
    for _ in range(2):  # the step may be repeated
        with caplog.at_level("INFO"):
            end(state="SUCCEEDED")
        assert client.get_run(parent).data.metrics == {"gpu_hours": 4.75}
    assert "4.8 GPU-hours" in caplog.text


def test_the_state_running_with_finished_stages(raw: str) -> None:
    parent, stage = start(raw)
    MlflowClient(tracking.uri()).set_terminated(stage, "FINISHED")
    end(state="RUNNING")
    assert statuses(parent) == ["FINISHED"]


def test_the_listing_changes_with_every_file(raw: str) -> None:
    digests = [digest_listing(raw)]
    (Path(raw) / "b.dcm").write_bytes(b"b")
    digests.append(digest_listing(raw))
    (Path(raw) / "b.dcm").write_bytes(b"other")
    digests.append(digest_listing(raw))
    assert len(set(digests)) == 3
    assert digest_listing(raw) == digests[-1]


def test_missing_prerequisites(raw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no files"):
        begin(name="training", raw=str(tmp_path / "empty"), root=str(tmp_path / "out"), tags={})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used"):
        begin(name="training", raw=raw, root=str(tmp_path / "out"), tags={})


def test_an_artifact_that_cannot_be_downloaded_is_found_by_the_first_step(raw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow answers with a link to its own object store, which the pods may not reach."""
    monkeypatch.setattr(pipeline_run, "ARTIFACT_SECONDS", 0.2)
    monkeypatch.setattr(MlflowClient, "download_artifacts", lambda *_: time.sleep(1))
    with pytest.raises(UserError, match=r"but a download of one byte has not ended within 0\.2 s; make the S3 address .* reachable"):
        start(raw)


def test_a_server_that_cannot_reach_its_object_store(raw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_run, "ARTIFACT_SECONDS", 0.2)
    monkeypatch.setattr(MlflowClient, "log_text", lambda *_: time.sleep(1))
    with pytest.raises(UserError, match=r"answers, but an upload of one byte has not ended .* server \(MLFLOW_S3_ENDPOINT_URL\)"):
        start(raw)


def test_a_server_that_has_stopped_answering_is_not_taken_for_its_object_store(raw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        time.sleep(1)

    monkeypatch.setattr(pipeline_run, "ARTIFACT_SECONDS", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(MlflowClient, "download_artifacts", stop)
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used .* set MLFLOW_TRACKING_URI"):
        start(raw)


def test_an_artifact_store_that_refuses(raw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Permission denied")

    monkeypatch.setattr(MlflowClient, "download_artifacts", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        start(raw)


def test_an_artifact_store_with_errors_of_its_own(raw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a proxy for artifacts, MLflow's client writes to S3 itself."""

    def refuse(*_: object) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}, "PutObject")

    monkeypatch.setattr(MlflowClient, "log_text", refuse)
    with pytest.raises(UserError, match="AccessDenied"):
        start(raw)


@pytest.mark.parametrize(
    ("strategy", "warns"),
    [
        ({"limit": "2", "retryPolicy": "OnError"}, True),
        ({"limit": "2"}, True),
        ({"limit": "2", "retryPolicy": "Always"}, True),
        ({"limit": "2", "retryPolicy": "Always", "expression": "lastRetry.exitCode == '143'"}, False),
    ],
)
def test_argo_must_replace_what_is_killed(
    raw: str, strategy: dict[str, str], warns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pipeline_run, "ARGO_TEMPLATE", tmp_path / "template")
    (tmp_path / "template").write_text(json.dumps({"name": "system-container-impl", "retryStrategy": strategy}))
    start(raw)
    assert ("deploy/retries.sed" in caplog.text) == warns


def test_a_starting_point_is_known_by_its_content(raw: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "moco.pth").write_bytes(b"weights")
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "backbone.json").write_bytes(b"{}")
    for name, content in (("moco.pth", b"weights"), ("backbone", b"{}")):
        assert begun(raw, str(tmp_path / name)) == {"uri": str(tmp_path / name), "sha256": hashlib.sha256(content).hexdigest()}
    assert begun(raw, "") == {}
    with pytest.raises(SystemExit) as ended:
        begun(raw, str(tmp_path / "nothing.pth"))
    assert ended.value.code == 2
    assert "nothing.pth" in capsys.readouterr().err.splitlines()[-1]


def begun(raw: str, start: str) -> dict[str, str]:
    """Returns what the first step hands on to those that pretrain."""
    root = str(Path(raw).parent / "out")
    _, found = kfp_components.begin.python_func(name="training", raw=raw, start=start, root=root, partitions=2, data_version="")
    known: dict[str, str] = json.loads(found)
    return known
