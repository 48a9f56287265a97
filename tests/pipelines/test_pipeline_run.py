"""The first and the last step of a pipeline, and the frame of those between."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.common.errors import UserError
from components.common.runs import storage, tracking
from components.common.runs.step import exit_codes, step
from components.pretrain.params import Pretrain
from pipelines.pipeline_run import begin, digest_listing, end


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    monkeypatch.setenv("KFP_RUN_ID", f"run-of-{request.node.name}")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.dcm").write_bytes(b"a")
    return str(tmp_path / "raw")


def start(raw: str) -> tuple[str, str]:
    """Begins a pipeline; returns the id of its MLflow run, and of one of a stage below it, which is running."""
    begin(name="training", raw=raw, root=str(Path(raw).parent / "out"), tags={"data.dvc.md5": "1234"})
    parent = tracking.pipeline_run_id()
    assert parent
    client = MlflowClient(tracking.uri())
    tags = {"kfp.run_id": client.get_run(parent).data.tags["kfp.run_id"]}
    return parent, client.create_run(tracking.experiment(client, "pretrain"), tags=tags).info.run_id


def statuses(*runs: str) -> list[str]:
    return [MlflowClient(tracking.uri()).get_run(run).info.status for run in runs]


def test_an_attempt_after_the_first_finds_the_run(raw: str) -> None:
    parent, _ = start(raw)
    begin(name="training", raw=raw, root=str(Path(raw).parent / "out"), tags={})
    assert tracking.pipeline_run_id() == parent
    tags = MlflowClient(tracking.uri()).get_run(parent).data.tags
    assert (tags["raw"], tags["data.dvc.md5"]) == (raw, "1234")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("SUCCEEDED", ["FINISHED", "FAILED"]),
        ("FAILED", ["FAILED", "FAILED"]),
        ("CANCELLED", ["KILLED", "KILLED"]),
        ("RUNNING", ["FAILED", "FAILED"]),
    ],
)
def test_the_end_closes_what_is_open(raw: str, state: str, expected: list[str]) -> None:
    """Also the run of a stage whose process was killed; of a state that says nothing, the stages decide."""
    runs = start(raw)
    end(state=state)
    assert statuses(*runs) == expected


def test_a_state_that_says_nothing_and_stages_that_all_finished(raw: str) -> None:
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


def test_prerequisites_that_are_missing(raw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no files"):
        begin(name="training", raw=str(tmp_path / "empty"), root=str(tmp_path / "out"), tags={})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used"):
        begin(name="training", raw=raw, root=str(tmp_path / "out"), tags={})


def test_the_folder_follows_from_all_that_decides_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    monkeypatch.setenv("GIT_COMMIT", "one")

    def folder(shards: str = "a", runtime: str = "{}", **changes: object) -> str:
        with step("pretrain", "root", Pretrain, json.dumps(changes), {"shards": shards}, runtime) as this:
            return this.out

    assert folder() == folder() == folder(epochs=200), "the default"
    assert folder(runtime='{"checkpoint_minutes": 3}') == folder(), "how, not what"
    others = {folder(), folder(epochs=3), folder("b")}
    monkeypatch.setenv("GIT_COMMIT", "two")
    assert len({*others, folder()}) == 4
    assert folder().startswith(storage.join("root", "pretrain", ""))


def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    with pytest.raises(SystemExit) as stop, exit_codes("pretrain"):
        raise UserError("shards: not there")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "pretrain: shards: not there\n"
