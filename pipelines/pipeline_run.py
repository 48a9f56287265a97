"""A run of a pipeline as an MLflow run, the parent of those of the stages: opened by the first step, closed by the last."""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from threading import Event, Thread
from typing import Any

from components.common.errors import UserError
from components.common.formats.backbone import BACKBONE
from components.common.runs import storage, tracking
from components.common.runs.delivery import reason, run_page
from components.common.runs.lineage import ALARM
from components.common.runs.provenance import KFP_VARIABLE, git_state
from pipelines.notification import notify

STATUSES = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}  # MLflow status by Kubeflow state
GPU_HOURS = "gpu_hours"  # metric of the runs of trainings, and their sum in the run of the pipeline
PROBE = ".probe"
ARTIFACT_SECONDS = 60.0  # how long an upload and a download of one byte may take
UPLOADS = "correct the S3 address in the configuration of the server (MLFLOW_S3_ENDPOINT_URL), or start the object store"
DOWNLOADS = "make the S3 address that the server hands out reachable from here, or set MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD=false"
ARGO_TEMPLATE = Path("/var/run/argo/template")  # in each pod of Argo: how it runs the step, its own defaults included

log = logging.getLogger(__name__)


def begin(*, name: str, raw: str, root: str, tags: dict[str, str]) -> str:
    """Checks within seconds what would otherwise fail after hours, and opens the MLflow run of the pipeline.

    Returns:
        A digest of the listing of `raw`, which changes if a file is added, removed or changed.

    Raises:
        UserError: a server cannot be reached, `raw` is empty, or `root` cannot be written to.
    """
    _check_retries()
    client = tracking.client()
    _check_artifacts(client, _open_run(client, name, tags))
    storage.write(storage.join(root, PROBE), b"")
    storage.delete(storage.join(root, PROBE))
    return digest_listing(raw)


def end(*, state: str) -> None:
    """Closes the MLflow run of the pipeline with Kubeflow's final state, and those that killed steps left open; posts the outcome."""
    client, runs = tracking.client(), tracking.pipeline_runs()
    # Before version 2.17, Kubeflow reports RUNNING if the pipeline has a loop; then the runs of the stages decide.
    unfinished = any(status != "FINISHED" for _, name, status in runs if name != tracking.PIPELINE)
    final = STATUSES.get(state, "FAILED" if unfinished else "FINISHED")
    with tracking.reachable():
        found = {run_id: client.get_run(run_id) for run_id, _, _ in runs}
        gpu_hours = sum(_gpu_hours(found[run_id].data.metrics) for run_id, name, _ in runs if name != tracking.PIPELINE)
        alarm = any(found[run_id].data.tags.get(ALARM) == "yes" for run_id, name, _ in runs if name != tracking.PIPELINE)
        for run_id, name, status in runs:
            if name == tracking.PIPELINE:
                client.log_metric(run_id, GPU_HOURS, gpu_hours)
                if alarm:
                    client.set_tag(run_id, ALARM, "yes")
                client.set_terminated(run_id, final)
            elif status == "RUNNING":  # its process was killed
                client.set_terminated(run_id, "KILLED" if final == "KILLED" else "FAILED")
    log.info("pipeline: %s, %.1f GPU-hours", final, gpu_hours)
    if alarm:
        log.warning("pipeline: ALARM, the scored images have changed; the page of the step monitor shows how")
    notify(client, found, final)


def _gpu_hours(metrics: dict[str, float]) -> float:
    """Sums the GPU-hours of the trainings in the run of a stage; `invert` has two."""
    return sum(metrics.get(name, 0.0) for name in (GPU_HOURS, f"gan_{GPU_HOURS}"))


def _open_run(client: Any, name: str, tags: dict[str, str]) -> str:
    """Creates the MLflow run, unless an earlier attempt of the step has, logs its address, and returns its id."""
    described = {
        "stage": tracking.PIPELINE,
        "kfp.run_id": os.environ.get(KFP_VARIABLE, ""),
        "mlflow.source.git.commit": git_state()["commit"] or "unknown",
    }
    known = tracking.pipeline_run_id()
    with tracking.reachable():
        if known:
            run = client.get_run(known)
        else:
            run = client.create_run(tracking.experiment(client, tracking.PIPELINE), run_name=name, tags={**described, **tags})
    if link := run_page(tracking.uri(), run):  # `python -m pipelines status` finds this line in the log of the step
        log.info("MLflow run: %s", link)
    return str(run.info.run_id)


def _check_artifacts(client: Any, run_id: str) -> None:
    """Uploads one byte to MLflow and downloads it, as the stages do with their files.

    A server on S3 may answer a download with a link to the endpoint that it uses itself. If this address cannot be reached from here,
    each file would take minutes.

    Raises:
        UserError: it takes too long, or the server refuses.
    """
    errors: list[Exception] = []
    uploaded = Event()

    def work() -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                client.log_text(run_id, "1", "check.txt")
                uploaded.set()
                client.download_artifacts(run_id, "check.txt", folder)
        except Exception as error:  # raised again below; artifact stores raise errors of their own
            errors.append(error if isinstance(error, OSError) or hasattr(error, "error_code") else OSError(reason(error)))

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(ARTIFACT_SECONDS)
    if thread.is_alive():
        tracking.client()  # raises if it is the server that does not answer, and not its object store
        problem = f"{'a download' if uploaded.is_set() else 'an upload'} of one byte has not ended within {ARTIFACT_SECONDS:g} s"
        remedy = DOWNLOADS if uploaded.is_set() else UPLOADS
        raise UserError(f"{tracking.server_name()} answers, but {problem}; {remedy}")
    with tracking.reachable():
        for error in errors:
            raise error


def _check_retries() -> None:
    """Warns if Argo would not replace a pod that was evicted or killed."""
    try:
        strategy = json.loads(ARGO_TEMPLATE.read_text()).get("retryStrategy") or {}
    except (OSError, ValueError):  # not in a pod of Argo
        return
    if not retries_what_is_killed(strategy):
        log.warning("begin: Argo will not replace pods that are evicted or killed; change its configuration with deploy/retries.sed")


def retries_what_is_killed(strategy: dict[str, Any]) -> bool:
    """Whether a retry strategy of Argo replaces pods that failed without the step being at fault, as deploy/retries.sed sets it."""
    return strategy.get("retryPolicy") == "Always" and "lastRetry" in strategy.get("expression", "")


def digest_start(start: str) -> str:
    """Computes the SHA-256 of a starting point of pretraining: of a file, or of backbone.json in an output folder of pretrain.

    Raises:
        UserError: it does not exist.
    """
    description = storage.join(start, BACKBONE)
    with storage.opened(description if storage.exists(description) else start) as file:
        return storage.digest_stream(file)


def digest_listing(raw: str) -> str:
    """Computes the SHA-256 over path, size and version of each file in a folder.

    Raises:
        UserError: the folder cannot be listed, or is empty.
    """
    sha256, empty = hashlib.sha256(), True
    for entry in storage.listing(raw):
        empty = False
        sha256.update(f"{entry.path}\0{entry.size}\0{entry.version}\n".encode("utf-8", "surrogateescape"))
    if empty:
        raise UserError(f"{raw}: holds no files; give the folder of the raw files with --raw")
    return sha256.hexdigest()
