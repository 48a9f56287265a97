"""A run of a pipeline as an MLflow run, the parent of those of the stages: opened by the first step, closed by the last."""

import hashlib
import logging
import os

from components.common.errors import UserError
from components.common.runs import storage, tracking
from components.common.runs.provenance import KFP_VARIABLE, git_state

STATUSES = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}  # MLflow status by Kubeflow state
PROBE = ".probe"

log = logging.getLogger(__name__)


def begin(*, name: str, raw: str, root: str, tags: dict[str, str]) -> str:
    """Checks within seconds what would otherwise fail after hours, and opens the MLflow run of the pipeline.

    Returns:
        A digest of the listing of `raw`, which changes if a file is added, removed or changed.

    Raises:
        UserError: a server cannot be reached, `raw` is empty, or `root` cannot be written to.
    """
    _open_run(name, tags)
    storage.write(storage.join(root, PROBE), b"")
    storage.delete(storage.join(root, PROBE))
    return digest_listing(raw)


def end(*, state: str) -> None:
    """Closes the MLflow run of the pipeline with Kubeflow's final state, and those that killed steps left open."""
    client, runs = tracking.client(), tracking.pipeline_runs()
    # Before version 2.17, Kubeflow reports RUNNING if the pipeline has a loop; then the runs of the stages decide.
    unfinished = any(status != "FINISHED" for _, name, status in runs if name != tracking.PIPELINE)
    final = STATUSES.get(state, "FAILED" if unfinished else "FINISHED")
    with tracking.reachable():
        for run_id, name, status in runs:
            if name == tracking.PIPELINE:
                client.set_terminated(run_id, final)
            elif status == "RUNNING":  # its process was killed
                client.set_terminated(run_id, "KILLED" if final == "KILLED" else "FAILED")
    log.info("pipeline: %s", final)


def _open_run(name: str, tags: dict[str, str]) -> None:
    """Creates the MLflow run, unless an earlier attempt of the step has, and logs its address."""
    client = tracking.client()
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
    if tracking.uri().startswith("http"):  # `python -m pipelines status` finds this line in the log of the step
        log.info("MLflow run: %s/#/experiments/%s/runs/%s", tracking.uri().rstrip("/"), run.info.experiment_id, run.info.run_id)


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
