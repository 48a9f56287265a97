"""The message that the last step of a pipeline posts about its outcome."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from components.common.errors import UserError
from components.common.runs import tracking, webhook
from components.common.runs.delivery import run_page
from pipelines.pipeline_run import begin, end
from tests import webhook as double


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[double.Webhook]:
    monkeypatch.setenv("KFP_RUN_ID", f"run-of-{request.node.name}")
    monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.0)
    with double.serve(monkeypatch) as running:
        yield running


def started(folder: Path, **stages: dict[str, str]) -> str:
    """Begins a pipeline and ends runs of its stages, each with a status and tags; returns the id of the run of the pipeline."""
    (folder / "raw" / "DOE^JANE").mkdir(parents=True)
    (folder / "raw" / "DOE^JANE" / "1.2.840.dcm").write_bytes(b"a")
    begin(name="scoring", raw=str(folder / "raw"), root=str(folder / "out"), tags={})
    client, parent = MlflowClient(tracking.uri()), tracking.pipeline_run_id()
    assert parent
    identity = client.get_run(parent).data.tags["kfp.run_id"]
    for stage, tags in stages.items():
        status = tags.pop("status", "FINISHED")
        made = client.create_run(tracking.experiment(client, stage), tags={"kfp.run_id": identity, "stage": stage, **tags})
        client.log_metric(made.info.run_id, "patients", 3)
        if status != "RUNNING":
            client.set_terminated(made.info.run_id, status)
    return parent


PREDICT = {"headline": "120 images scored, 3 files refused", "input.raw.sha256": "0" * 64}
ALARM = {"alarm": "yes", "headline": "view (metadata): population stability index 0.412, up to 0.104 without change, p 0.0003"}


@pytest.mark.parametrize(
    ("state", "stages", "expected"),
    [
        ("SUCCEEDED", {"predict": PREDICT, "monitor": {"alarm": "no", "headline": "no alarm"}},
         {"outcome": "succeeded", "alarm": False, "facts": {"predict": PREDICT["headline"], "monitor": "no alarm"}}),
        ("SUCCEEDED", {"predict": PREDICT, "monitor": ALARM},
         {"outcome": "succeeded", "alarm": True, "facts": {"predict": PREDICT["headline"], "monitor": ALARM["headline"]}}),
        ("FAILED", {"predict": PREDICT, "monitor": {"status": "FAILED"}, "evaluate": {"status": "RUNNING"}},
         {"outcome": "failed", "alarm": False, "facts": {"not finished": "evaluate and monitor", "predict": PREDICT["headline"]}}),
        ("CANCELLED", {"predict": {"status": "RUNNING"}}, {"outcome": "cancelled", "alarm": False, "facts": {"not finished": "predict"}}),
    ],
)  # fmt: skip
def test_one_message_per_outcome(
    state: str, stages: dict[str, dict[str, str]], expected: dict[str, Any], server: double.Webhook, tmp_path: Path
) -> None:
    parent = started(tmp_path, **{name: dict(tags) for name, tags in stages.items()})
    for _ in range(2):  # the step may be repeated
        end(state=state)
    (sent,) = server.messages
    double.check(sent, "json")
    assert sent == {"name": "scoring", "link": "", **expected}
    written = json.dumps([sent, dict(MlflowClient(tracking.uri()).get_run(parent).data.tags)])
    assert not [word for word in ("DOE", "1.2.840", str(tmp_path), double.SECRET) if word in written]


def test_another_outcome_of_a_run_that_is_tried_again_is_posted(server: double.Webhook, tmp_path: Path) -> None:
    started(tmp_path)
    for state in ("FAILED", "SUCCEEDED", "SUCCEEDED"):
        end(state=state)
    assert [sent["outcome"] for sent in server.messages] == ["failed", "succeeded"]


def test_a_refused_message_is_a_warning_and_a_later_attempt_posts_it(
    server: double.Webhook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parent = started(tmp_path)
    server.answers[:] = [403]
    end(state="SUCCEEDED")
    assert "webhook: no message, since the server answers 403" in caplog.text
    assert MlflowClient(tracking.uri()).get_run(parent).info.status == "FINISHED"
    end(state="SUCCEEDED")
    assert len(server.messages) == 1


def test_mlflow_is_lost_after_the_message(
    server: double.Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another attempt of the step could not know of the message, so that this one does not fail."""

    def lose(*_: object) -> None:
        raise OSError("lost")

    started(tmp_path)
    monkeypatch.setattr(MlflowClient, "set_tag", lose)
    end(state="SUCCEEDED")
    assert len(server.messages) == 1 and "lost" in caplog.text


def test_a_pipeline_that_failed_before_its_first_step(server: double.Webhook) -> None:
    end(state="FAILED")
    assert server.messages == [{"name": "pipeline", "outcome": "failed", "alarm": False, "facts": {}, "link": ""}]


def test_the_link_leads_to_kubeflow_or_else_to_mlflow(server: double.Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = MlflowClient(tracking.uri()).get_run(started(tmp_path))
    assert run_page("http://cxr:secret@host:5000/mlflow/", parent) == (
        f"http://host:5000/mlflow/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    )
    monkeypatch.setenv(webhook.PAGE_VARIABLE, "https://kubeflow.example.org/#/runs/details/")
    end(state="SUCCEEDED")
    assert server.messages[0]["link"] == f"https://kubeflow.example.org/#/runs/details/{parent.data.tags['kfp.run_id']}"


def test_a_server_that_cannot_be_reached_fails_the_step(server: double.Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later attempt posts the message."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="cannot be used"):
        end(state="SUCCEEDED")
    assert not server.messages
