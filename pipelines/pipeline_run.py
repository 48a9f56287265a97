"""The first and the last step of a pipeline's run, and its MLflow run, below which those of the stages appear."""

import hashlib
import logging
import os

from components.common.errors import UserError
from components.common.runs import storage, tracking
from components.common.runs.provenance import KFP_VARIABLE, git_state

STATES = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}
"""MLflow's word for Kubeflow's."""
PROBE = ".probe"

log = logging.getLogger(__name__)


def begin(*, name: str, raw: str, root: str, tags: dict[str, str]) -> str:
    """Checks in seconds what would else fail after hours, and opens the MLflow run.

    Args:
        name: of the pipeline.
        raw: folder of the raw files.
        root: folder of all outputs.
        tags: of the MLflow run.

    Returns:
        A digest of the listing of `raw`, which changes with every file that comes, goes or changes.

    Raises:
        UserError: a server cannot be reached, `raw` is empty, or `root` cannot be written.
    """
    open_run(name, {"raw": raw, "root": root, **tags})
    storage.write(storage.join(root, PROBE), b"")
    storage.delete(storage.join(root, PROBE))
    return digest_listing(raw)


def end(*, state: str) -> None:
    """Closes the MLflow run with the state that the pipeline ended in, and what killed steps have left open.

    Args:
        state: Kubeflow's: SUCCEEDED, FAILED or CANCELLED.
    """
    client, found = tracking.client(), tracking.pipeline_runs()
    # Before 2.17 Kubeflow says RUNNING when there is a loop in the pipeline: then the stages' runs tell.
    unfinished = any(status != "FINISHED" for _, name, status in found if name != tracking.PIPELINE)
    status = STATES.get(state, "FAILED" if unfinished else "FINISHED")
    with tracking.reachable():
        for run_id, name, before in found:
            if name == tracking.PIPELINE:
                client.set_terminated(run_id, status)
            elif before == "RUNNING":  # its process was killed
                client.set_terminated(run_id, "KILLED" if status == "KILLED" else "FAILED")
    log.info("pipeline: %s", status)


def open_run(name: str, tags: dict[str, str]) -> str:
    """The MLflow run of this pipeline run: an earlier attempt's, or a new one."""
    if known := tracking.pipeline_run_id():
        return known
    client = tracking.client()
    described = {
        "stage": tracking.PIPELINE,
        "kfp.run_id": os.environ.get(KFP_VARIABLE, ""),
        "mlflow.source.git.commit": git_state()["commit"] or "unknown",
    }
    with tracking.reachable():
        run = client.create_run(tracking.experiment(client, tracking.PIPELINE), run_name=name, tags={**described, **tags})
    return str(run.info.run_id)


def digest_listing(raw: str) -> str:
    """SHA-256 over path, size and version of every file below a folder.

    Raises:
        UserError: it cannot be listed, or holds nothing.
    """
    total, empty = hashlib.sha256(), True
    for entry in storage.listing(raw):
        empty = False
        total.update(f"{entry.path}\0{entry.size}\0{entry.version}\n".encode("utf-8", "surrogateescape"))
    if empty:
        raise UserError(f"{raw}: holds no files; give the folder of the raw files with --raw")
    return total.hexdigest()
