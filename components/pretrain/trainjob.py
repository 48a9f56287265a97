"""Pretraining on several nodes: creates a TrainJob of Kubeflow Trainer, follows it, and deletes it."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kubeflow.trainer import CustomTrainerContainer, TrainerClient
from kubeflow.trainer import options as option
from kubeflow.trainer.constants import constants

from components.common.errors import UserError
from components.common.runs.params import Runtime
from components.common.runs.provenance import KFP_VARIABLE
from components.pretrain.launch import command
from components.pretrain.params import Pretrain

POLL_SECONDS = 10.0
RUN_LABEL = "cxr/pipeline-run"
SECRETS_VARIABLE = "CXR_SECRETS"
SECRETS_FOLDER = "/var/run/secrets/cxr"
PASSED_ON = (KFP_VARIABLE, "MLFLOW_RUN_ID")  # environment variables of this step that the nodes need
# The SDK cannot refer to Secrets in the environment of a TrainJob: they are mounted as files, which become variables here.
WITH_SECRETS = f'for file in "${SECRETS_VARIABLE}"/*; do [ -f "$file" ] && export "${{file##*/}}=$(cat "$file")"; done; exec "$@"'

log = logging.getLogger(__name__)


def run_on_nodes(shards: list[str], out: str, params: Pretrain, runtime: Runtime, cluster: str) -> None:
    """Pretrains on several nodes, described by the JSON of pipelines.resources.describe_nodes; resumes after a preemption."""
    follow(TrainerClient(), f"pretrain-{out.rpartition('/')[2]}", command(shards, out, params, runtime), json.loads(cluster))


def follow(client: TrainerClient, name: str, command: list[str], cluster: dict[str, Any]) -> None:
    """Creates a TrainJob, replacing an earlier one of the same name, follows it until it ends, and deletes it in any case."""
    with _explained(name):
        _delete_earlier(client, name)
        client.train(cluster["runtime"], trainer=trainer(cluster), options=options(name, command, cluster))
        try:
            _wait(client, name)
        finally:
            with suppress(RuntimeError):  # must not hide an earlier error
                client.delete_job(name)


def trainer(cluster: dict[str, Any]) -> CustomTrainerContainer:
    """Returns image, number and resources of the nodes."""
    passed = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    environment = {**cluster["environment"], **passed, SECRETS_VARIABLE: SECRETS_FOLDER}
    return CustomTrainerContainer(cluster["image"], cluster["nodes"], cluster["resources"], environment)


def options(name: str, command: list[str], cluster: dict[str, Any]) -> list[Any]:
    """Returns the rest of the request: name, command, and the pod spec."""
    mounts = [{"name": volume["name"], "mountPath": path} for volume, path in cluster["volumes"]]
    pod = option.PodSpecPatch(
        service_account_name=cluster["service_account"],
        volumes=[volume for volume, _ in cluster["volumes"]],
        containers=[option.ContainerPatch(name=constants.NODE, volume_mounts=mounts)],
        image_pull_secrets=cluster["image_pull_secrets"],
        security_context=cluster["security_context"],
        node_selector=cluster["node_selector"],
        tolerations=cluster["tolerations"],
        affinity=cluster["affinity"],
    )
    template = option.PodTemplatePatch(spec=pod)
    job = option.ReplicatedJobPatch(constants.NODE, option.JobTemplatePatch(spec=option.JobSpecPatch(template=template)))
    return [
        option.Name(name),
        option.Labels({RUN_LABEL: os.environ.get(KFP_VARIABLE, "none")}),
        option.ActiveDeadlineSeconds(cluster["deadline_seconds"]),
        option.TrainerCommand(["sh", "-c", WITH_SECRETS, "sh", *command]),
        option.RuntimePatch(option.TrainingRuntimeSpecPatch(option.JobSetTemplatePatch(spec=option.JobSetSpecPatch([job])))),
    ]


def _wait(client: TrainerClient, name: str) -> None:
    shown = 0
    while True:
        status = client.get_job(name).status
        with suppress(RuntimeError):  # the pod has no log yet, or no longer
            lines = list(client.get_job_logs(name))
            for line in lines[shown:]:
                log.info("%s", line)
            shown = max(shown, len(lines))
        if status == constants.TRAINJOB_COMPLETE:
            return
        if status == constants.TRAINJOB_FAILED:
            raise UserError(f"TrainJob {name} has failed; see its log above")
        time.sleep(POLL_SECONDS)


def _delete_earlier(client: TrainerClient, name: str) -> None:
    """Deletes an earlier TrainJob of this name and waits until it is gone, so that its pods no longer use the checkpoint."""
    with suppress(RuntimeError):  # raised once there is none
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
        hint = "check Kubeflow Trainer and the permissions of the service account of the step"
        raise UserError(f"TrainJob {name}: {error} ({cause}); {hint}") from None
