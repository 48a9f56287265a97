"""Pretraining on several nodes: a TrainJob of Kubeflow Trainer, which is made, followed and removed again."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kubeflow.trainer import CustomTrainerContainer, TrainerClient
from kubeflow.trainer.constants import constants
from kubeflow.trainer.options import (
    ActiveDeadlineSeconds,
    ContainerPatch,
    JobSetSpecPatch,
    JobSetTemplatePatch,
    JobSpecPatch,
    JobTemplatePatch,
    Labels,
    Name,
    PodSpecPatch,
    PodTemplatePatch,
    ReplicatedJobPatch,
    RuntimePatch,
    TrainerCommand,
    TrainingRuntimeSpecPatch,
)

from components.common.errors import UserError
from components.common.runs.params import Runtime
from components.common.runs.provenance import KFP_VARIABLE
from components.pretrain.launch import command
from components.pretrain.params import Pretrain

POLL_SECONDS = 10.0
RUN_LABEL = "cxr/pipeline-run"
SECRETS_VARIABLE = "CXR_SECRETS"
SECRETS_FOLDER = "/var/run/secrets/cxr"
PASSED_ON = (KFP_VARIABLE, "MLFLOW_RUN_ID")
"""Variables that a node needs of this step."""
# Trainer takes a node's environment from the TrainJob alone, and the SDK has no references to Secrets there: files become variables.
WITH_SECRETS = f'for file in "${SECRETS_VARIABLE}"/*; do [ -f "$file" ] && export "${{file##*/}}=$(cat "$file")"; done; exec "$@"'

log = logging.getLogger(__name__)


def run_on_nodes(shards: list[str], out: str, params: Pretrain, runtime: Runtime, cluster: str) -> None:
    """Pretrains on several nodes, showing the log of the first; an attempt that was preempted goes on from its checkpoint.

    Args:
        shards: output folders of preprocess.
        out: output folder, named by a hash.
        params: the section `pretrain`.
        runtime: the section `runtime`.
        cluster: JSON of image, nodes, sizes and what else the settings say, made by pipelines.resources.describe_nodes.

    Raises:
        UserError: the cluster refuses, or the TrainJob fails.
    """
    follow(TrainerClient(), f"pretrain-{out.rpartition('/')[2]}", command(shards, out, params, runtime), json.loads(cluster))


def follow(client: TrainerClient, name: str, command: list[str], cluster: dict[str, Any]) -> None:
    """Makes a TrainJob, in place of an earlier one of its name, follows it to its end, and removes it, come what may.

    Args:
        client: of Kubeflow Trainer.
        name: of the TrainJob.
        command: of every node.
        cluster: as for `run_on_nodes`.

    Raises:
        UserError: the cluster refuses, or the TrainJob fails.
    """
    with _explained(name):
        _remove(client, name)
        client.train(cluster["runtime"], trainer=trainer(cluster), options=options(name, command, cluster))
        try:
            _wait(client, name)
        finally:
            with suppress(RuntimeError):  # what went wrong before is what counts
                client.delete_job(name)


def trainer(cluster: dict[str, Any]) -> CustomTrainerContainer:
    """Image, number and size of the nodes."""
    ours = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    environment = {**cluster["environment"], **ours, SECRETS_VARIABLE: SECRETS_FOLDER}
    return CustomTrainerContainer(cluster["image"], cluster["nodes"], cluster["resources"], environment)


def options(name: str, command: list[str], cluster: dict[str, Any]) -> list[Any]:
    """The rest of the request: the command, and where and as whom the pods run."""
    mounts = [{"name": volume["name"], "mountPath": path} for volume, path in cluster["volumes"]]
    pod = PodSpecPatch(
        service_account_name=cluster["service_account"],
        volumes=[volume for volume, _ in cluster["volumes"]],
        containers=[ContainerPatch(name=constants.NODE, volume_mounts=mounts)],
        image_pull_secrets=cluster["image_pull_secrets"],
        security_context=cluster["security_context"],
        node_selector=cluster["node_selector"],
        tolerations=cluster["tolerations"],
        affinity=cluster["affinity"],
    )
    job = ReplicatedJobPatch(constants.NODE, JobTemplatePatch(spec=JobSpecPatch(template=PodTemplatePatch(spec=pod))))
    return [
        Name(name),
        Labels({RUN_LABEL: os.environ.get(KFP_VARIABLE, "none")}),
        ActiveDeadlineSeconds(cluster["deadline_seconds"]),
        TrainerCommand(["sh", "-c", WITH_SECRETS, "sh", *command]),
        RuntimePatch(TrainingRuntimeSpecPatch(JobSetTemplatePatch(spec=JobSetSpecPatch([job])))),
    ]


def _wait(client: TrainerClient, name: str) -> None:
    """Waits for the end; what the first node says is shown as it comes."""
    shown = 0
    while True:
        status = client.get_job(name).status
        with suppress(RuntimeError):  # a pod that has no log yet, or no longer
            lines = list(client.get_job_logs(name))
            for line in lines[shown:]:
                log.info("%s", line)
            shown = max(shown, len(lines))
        if status == constants.TRAINJOB_COMPLETE:
            return
        if status == constants.TRAINJOB_FAILED:
            raise UserError(f"TrainJob {name} has failed; its log stands above")
        time.sleep(POLL_SECONDS)


def _remove(client: TrainerClient, name: str) -> None:
    """Removes an earlier TrainJob of this name, and waits until its pods no longer hold the checkpoint."""
    with suppress(RuntimeError):
        client.delete_job(name)
        while True:
            client.get_job(name)
            time.sleep(POLL_SECONDS)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TimeoutError) as error:
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(
            f"TrainJob {name}: {error} ({cause}); check Kubeflow Trainer and the rights of the step's service account"
        ) from None
