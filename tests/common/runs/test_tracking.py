import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import DatasetInput
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from components.common.errors import UserError
from components.common.formats.history import HISTORY
from components.common.runs import delivery, outbox, tracking
from components.common.runs.params import Register, Runtime
from components.common.runs.signals import Interrupted
from components.common.runs.work import RUN_ID_FILE, Work, open_work

PARAMS = Register(min_auroc=0.6, licence="none")


def opened(stage: str, out: str, inputs: dict[str, str], **options: Any) -> Work:
    """Opens a run and releases its lock; returns its work in progress."""
    with open_work(Work, stage, out, PARAMS, inputs, **options) as work:
        return work


@pytest.fixture
def job(tmp_path: Path, request: pytest.FixtureRequest) -> Work:
    """Work in progress whose stage, and hence whose experiment, is named after the test."""
    return opened(request.node.name, str(tmp_path / "out"), {"model": "abc"}, upstream={"model": "run0"})


@pytest.fixture
def client() -> MlflowClient:
    return tracking.client()


def test_a_run_holds_parameters_metrics_and_lineage(job: Work, client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_COMMIT", "f00")
    with tracking.begin(job) as tracker:
        tracker.log({"loss": 2.0, "unknown": float("nan")}, 1)
        tracker.log({"loss": 1.0}, 2)
        tracker.tag({"more": "yes"})
        assert client.get_run(tracker.run_id).info.status == "RUNNING"

    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == job.stage
    assert run.data.params == {"name": "None", "min_auroc": "0.6", "resamples": "2000", "seed": "0", "licence": "none"}
    assert {name: value for name, value in run.data.metrics.items() if not name.startswith("system/")} == {"loss": 1.0}
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0
    assert [(source.dataset.name, source.dataset.digest) for source in run.inputs.dataset_inputs] == [("model", "abc")]
    assert [(point.step, point.value) for point in client.get_metric_history(tracker.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    expected = {
        "stage": job.stage,
        "fingerprint": job.fingerprint,
        "mlflow.source.git.commit": "f00",
        "input.model.sha256": "abc",
        "upstream.model.run_id": "run0",
        "more": "yes",
    }
    assert expected.items() <= run.data.tags.items()


def points(client: MlflowClient, run_id: str, name: str = "loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Returns a function that takes the server down or up. While down, it carries out requests but fails to answer."""
    original = MlflowClient.log_batch

    def turn(there: bool) -> None:
        def answerless(self: MlflowClient, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            raise MlflowException("no answer")

        monkeypatch.setattr(MlflowClient, "log_batch", original if there else answerless)

    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(tracking, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(tracking, "WAIT_SECONDS_STOPPED", 0.1)
    return turn


def test_what_a_lost_server_misses_is_sent_when_it_is_back(
    job: Work, client: MlflowClient, switch: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with tracking.begin(job) as tracker:
        tracker.log({"loss": 3.0}, 1)
        tracker.flush()
        switch(False)
        for epoch in (2, 3):
            tracker.log({"loss": 4.0 - epoch}, epoch)
        time.sleep(0.2)
        assert (caplog.text.count("is lost"), caplog.text.count(" is back; ")) == (1, 0)
        switch(True)
        tracker.log({"loss": 0.0}, 4)
    assert points(client, tracker.run_id) == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.0)]
    assert caplog.text.count(" is back; ") == 1
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_slow_upload_of_a_file_that_moves_is_no_lost_server(
    job: Work, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def slow(*arguments: Any) -> None:
        moved.wait(10)
        upload(*arguments)

    upload, moved = delivery._upload, threading.Event()
    monkeypatch.setattr(delivery, "_upload", slow)
    with tracking.begin(job) as tracker:
        (job.folder / "figures").mkdir()
        for name in ("a.png", "b.png"):
            (job.folder / "figures" / name).write_text(name)
        tracker.attach(job.folder / "figures")
        tracker.attach(job.folder / "figures" / "a.png")
        job.finish({}, tracker.run_id, drop=(RUN_ID_FILE,))
        moved.set()
    assert sorted(item.path for item in client.list_artifacts(tracker.run_id)) == ["a.png", "b.png"]
    assert "is lost" not in caplog.text
    assert not job.folder.parent.exists()


def test_unsent_data_is_sent_by_the_next_stage(job: Work, client: MlflowClient, switch: Callable[[bool], None], tmp_path: Path) -> None:
    with tracking.begin(job) as tracker:
        (job.folder / "report.html").write_text("report")
        switch(False)
        tracker.log({"loss": 1.0}, 1)
        tracker.tag({"more": "yes"})
        tracker.attach(job.folder / "report.html", "reports")
        job.finish({}, tracker.run_id, drop=(RUN_ID_FILE,))
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    switch(True)

    with tracking.begin(opened(f"{job.stage}_next", str(tmp_path / "next"), {})):
        pass

    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["more"]) == ("FINISHED", "yes")
    assert points(client, tracker.run_id) == [(1, 1.0)]
    assert [item.path for item in client.list_artifacts(tracker.run_id, "reports")] == ["reports/report.html"]
    assert list(tmp_path.rglob(f"*{tracking.UNSENT}")) == []


def test_a_resumed_run_gets_what_history_has_and_no_epoch_twice(job: Work, client: MlflowClient) -> None:
    with pytest.raises(Interrupted), tracking.begin(job) as tracker:
        tracker.log({"loss": 3.0, "images_per_second": 10.0}, 1)
        raise Interrupted
    (job.folder / HISTORY).write_text("epoch,loss,images_per_second\n1,3.0,10.0\n2,2.0,11.0\n")  # epoch 2 was lost with the process

    with tracking.begin(opened(job.stage, job.out, job.inputs)) as tracker:
        tracker.log({"loss": 2.0, "images_per_second": 12.0}, 2)  # repeated from an older checkpoint
        tracker.log({"loss": 1.0, "images_per_second": 12.0}, 3)

    assert points(client, tracker.run_id) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert [step for step, _ in points(client, tracker.run_id, "images_per_second")] == [1, 2, 3]


def test_a_refused_value_costs_neither_its_batch_nor_later_ones(
    job: Work, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "mlflow_key", lambda name, longest: name)
    with tracking.begin(job) as tracker:
        tracker.log({"not*a*name": 1.0, "loss": 2.0}, 1)
        tracker.log({"loss": 1.0}, 2)
    assert points(client, tracker.run_id) == [(1, 2.0), (2, 1.0)]
    assert caplog.text.count("rejected 1 of 2 values") == 1 and "not*a*name" in caplog.text


def test_names_that_mlflow_refuses_are_changed(job: Work, client: MlflowClient, caplog: pytest.LogCaptureFixture) -> None:
    job.params["positive_rate"] = {"Effusion (left)": 0.3, "../Nodule": 0.2}
    with tracking.begin(job) as tracker:
        tracker.log({"auroc_Effusion (left)": 0.5, "auroc_Effusion [left]": 0.6})
        tracker.tag({"seen (by)": "two"})
    data = client.get_run(tracker.run_id).data
    assert {value for name, value in data.params.items() if name.startswith("positive_rate.")} == {"0.3", "0.2"}
    assert sorted(value for name, value in data.metrics.items() if name.startswith("auroc_")) == [0.5, 0.6]
    assert "two" in data.tags.values()
    assert "rejected" not in caplog.text


def test_a_run_of_the_orchestrator_is_used_and_left_open(job: Work, client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = client.create_run(client.create_experiment(f"{job.stage}_theirs")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    monkeypatch.setenv("KFP_RUN_ID", "kfp-7")
    with tracking.begin(job) as tracker:
        tracker.log({"loss": 1.0})
    run = client.get_run(theirs)
    assert (tracker.run_id, run.info.status, run.data.metrics["loss"], run.data.tags["kfp.run_id"]) == (theirs, "RUNNING", 1.0, "kfp-7")

    with tracking.begin(opened(f"{job.stage}_second", f"{job.out}2", {})) as second:  # one pipeline run, several stages
        pass
    assert second.run_id != theirs
    assert client.get_run(second.run_id).data.tags["mlflow.parentRunId"] == theirs

    with (
        tracking.begin(opened(job.stage, job.out, job.inputs, runtime=Runtime(workers=3))),
        tracking.begin(opened(job.stage, job.out, job.inputs, runtime=Runtime(workers=4))),
    ):
        pass  # MLflow keeps the first value of a parameter
    assert client.get_run(theirs).data.params["runtime.workers"] == "3"


def test_a_run_that_does_not_exist_is_named(job: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "nowhere")
    with pytest.raises(UserError, match=r"refuses a request \(.*nowhere.*\); correct .* MLFLOW_RUN_ID"), tracking.begin(job):
        pass


def test_artifacts_lie_beside_the_database(job: Work, tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow would put them by default
    (tmp_path / "report.html").write_text("report")
    with tracking.begin(job) as tracker:
        tracker.attach(tmp_path / "report.html")
    expected = mlflow_database.parent / "mlruns" / job.stage / tracker.run_id / "artifacts" / "report.html"
    assert expected.read_text() == "report"


def test_the_default_is_mlflow_db_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for name in ("one", "two"):  # MLflow caches connections by URI: a relative one would lead to `one` twice
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert tracking.uri() == f"sqlite:///{tmp_path / name / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking.uri() == "http://mlflow:5000"


@pytest.mark.parametrize("name", ["a%20b?c=d", "a#b ä"])  # with and without characters that are escaped in the address
def test_the_database_may_lie_in_any_folder(name: str, job: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "parent" / name
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    (tmp_path / "report.html").write_text("report")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with tracking.begin(job) as tracker:
        tracker.attach(tmp_path / "report.html")
    with sqlite3.connect(folder / "mlflow.db") as connection:
        assert connection.execute("SELECT run_uuid, status FROM runs").fetchall() == [(tracker.run_id, "FINISHED")]
    assert (folder / "mlruns" / job.stage / tracker.run_id / "artifacts" / "report.html").read_text() == "report"
    copied = tracking.client().download_artifacts(tracker.run_id, "report.html", str(tmp_path))
    assert Path(copied).read_text() == "report"
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(("error", "status"), [(Interrupted, "KILLED"), (ZeroDivisionError, "FAILED"), (KeyboardInterrupt, "FAILED")])
def test_a_stopped_run_records_its_status_and_is_resumed(error: type[BaseException], status: str, job: Work, client: MlflowClient) -> None:
    with pytest.raises(error), tracking.begin(job) as tracker:
        tracker.log({"loss": 1.0}, 1)
        raise error
    assert client.get_run(tracker.run_id).info.status == status

    with tracking.begin(job) as again:
        again.log({"loss": 0.5}, 2)
    assert again.run_id == tracker.run_id
    assert client.get_run(again.run_id).info.status == "FINISHED"
    assert len(client.get_metric_history(again.run_id, "loss")) == 2


def test_a_run_that_is_gone_is_begun_anew(job: Work, client: MlflowClient) -> None:
    with pytest.raises(Interrupted), tracking.begin(job) as tracker:
        raise Interrupted
    client.delete_run(tracker.run_id)
    with tracking.begin(job) as second:
        assert second.run_id != tracker.run_id
    (job.folder / RUN_ID_FILE).write_text("of-another-server")
    with tracking.begin(job) as third:
        assert third.run_id not in (second.run_id, "of-another-server")


def test_a_deleted_experiment_is_named(job: Work, client: MlflowClient) -> None:
    with tracking.begin(job) as tracker:
        pass
    (job.folder / RUN_ID_FILE).unlink()
    experiment = client.get_run(tracker.run_id).info.experiment_id
    client.delete_experiment(experiment)
    with pytest.raises(UserError, match=f"restore --experiment-id {experiment}"), tracking.begin(job):
        pass
    client.restore_experiment(experiment)


def test_an_experiment_that_another_process_makes_at_the_same_time(
    job: Work, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: MlflowClient, name: str, artifact_location: str | None = None) -> str:
        original(client, name, artifact_location)
        return original(self, name, artifact_location)  # the second call fails

    original = MlflowClient.create_experiment
    monkeypatch.setattr(MlflowClient, "create_experiment", slow)
    with tracking.begin(job) as tracker:
        pass
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_an_input_that_another_run_logs_at_the_same_time(job: Work, client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL refuses the second of two equal datasets; tests/test_servers.py tests it with two real writers."""
    refusals = [MlflowException("duplicate key value violates unique constraint", error_code=BAD_REQUEST)]

    def slow(self: MlflowClient, run_id: str, datasets: list[DatasetInput]) -> None:
        if refusals:
            raise refusals.pop()
        original(self, run_id, datasets)

    original = MlflowClient.log_inputs
    monkeypatch.setattr(MlflowClient, "log_inputs", slow)
    with tracking.begin(job) as tracker:
        pass
    assert {each.dataset.name for each in client.get_run(tracker.run_id).inputs.dataset_inputs} == set(job.inputs)
    assert job.inputs and not refusals


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9", "sqlite:///{folder}/text.db", "{folder}/mlruns", "postgresql+psycopg2://u:p@127.0.0.1:9/mlflow", "foo://bar"],
)
def test_a_server_that_cannot_be_used_is_named(
    address: str, job: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text.db").write_text("this is no database, whatever its name may say")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(folder=tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError) as error, tracking.begin(job):
        pass
    message = str(error.value)
    assert message.startswith(f"MLflow at {address.format(folder=tmp_path).replace(':p@', ':***@')} cannot be used (")
    assert message.endswith("start it or set MLFLOW_TRACKING_URI")
    assert "\n" not in message
    assert "retried" not in caplog.text, "the database is tried once; MLflow by itself tries for 100 s"


def test_losing_the_server_does_not_hide_the_original_error(
    job: Work, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    with pytest.raises(ZeroDivisionError), tracking.begin(job) as tracker:
        monkeypatch.setattr(tracking, "WAIT_SECONDS", 0.1)
        monkeypatch.setattr(tracking, "WAIT_SECONDS_STOPPED", 0.1)
        monkeypatch.setattr(MlflowClient, "log_batch", gone)
        tracker.log({"loss": 1.0})
        with pytest.raises(UserError, match="is lost"):
            tracker.flush()
        raise ZeroDivisionError
    assert caplog.text.count("is lost (gone)") == 1
    assert f"run {tracker.run_id} could not be completed" in caplog.text


def test_importing_it_turns_telemetry_off() -> None:
    code = "from components.common.runs import tracking; from mlflow.telemetry import get_telemetry_client as get; print(get())"
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and name not in ("CI", "DO_NOT_TRACK")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
