"""The MLflow run of a pipeline, and the checks of its first step."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.common.errors import UserError
from components.common.runs import tracking
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
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used"):
        begin(name="training", raw=raw, root=str(tmp_path / "out"), tags={})
