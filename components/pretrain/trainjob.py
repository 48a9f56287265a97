"""Pretraining on several nodes: creates a TrainJob of Kubeflow Trainer, follows it, and deletes it."""

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config

from components.common.errors import TemporaryError, UserError
from components.common.runs.params import Runtime
from components.common.runs.provenance import KFP_VARIABLE
from components.common.training.launch import Inputs, command
from components.pretrain import nodes
from components.pretrain.params import Pretrain

GROUP, VERSION, TRAINJOBS = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
RUN_LABEL = "cxr/pipeline-run"  # of TrainJobs and their pods
STEP_LABEL = "pipeline/runid"  # of the pods that Kubeflow starts for a pipeline run
MANAGER = "cxr/pipelines"  # of our patch of the runtime
SECRETS_VARIABLE = "CXR_SECRETS"
SECRETS_FOLDER = "/var/run/secrets/cxr"
PASSED_ON = (KFP_VARIABLE, "MLFLOW_RUN_ID")  # environment variables of this step that the nodes need
# Trainer's webhook refuses references to Secrets in a patch of the node's container: they are mounted as files, which become variables.
WITH_SECRETS = f'for file in "${SECRETS_VARIABLE}"/*; do [ -f "$file" ] && export "${{file##*/}}=$(cat "$file")"; done; exec "$@"'
POLL_SECONDS = 10.0
PATIENCE_SECONDS = 900.0  # how long to outlast an API that does not answer, and to wait for the pods of an earlier attempt
PARTING_SECONDS = 10.0  # the same at the end: Kubernetes kills this pod 30 s after SIGTERM
TIMEOUT_SECONDS = (5, 30)  # for the connection, and for the answer
USER_ERROR = 2  # exit code
MESSAGE = "pretrain: "  # beginning of the message that explains it
LAST_LINES = 20

log = logging.getLogger(__name__)


def run_on_nodes(inputs: Inputs, out: str, params: Pretrain, runtime: Runtime, cluster: str) -> None:
    """Pretrains on several nodes, described by the JSON of pipelines.resources.describe_nodes; resumes after a preemption."""
    config.load_incluster_config()
    name = f"pretrain-{out.rpartition('/')[2]}"
    arguments = command("pretrain", inputs, out, params, runtime)
    TrainJob(name, NAMESPACE.read_text().strip()).run(["python3", *arguments], json.loads(cluster))


class TrainJob:
    """A TrainJob and its pods."""

    def __init__(self, name: str, namespace: str, connection: client.ApiClient | None = None):
        """Does not create it yet.

        Args:
            name: the same for each attempt of the step, so that an attempt replaces that of the one before.
            namespace: where it runs.
            connection: None for the configuration that was loaded.
        """
        self.name, self._namespace = name, namespace
        self._objects, self._core = client.CustomObjectsApi(connection), client.CoreV1Api(connection)
        self._positions: dict[str, nodes.Position] = {}
        self._said: dict[str, str] = {}
        self._tails: dict[str, deque[str]] = {}

    def run(self, command: list[str], cluster: dict[str, Any]) -> None:
        """Creates it, in place of that of an earlier attempt, follows it until it ends, and deletes it in any case.

        Raises:
            UserError: a node reports a mistake of the user, or Kubernetes refuses a request.
            TemporaryError: the API of Kubernetes does not answer for a long time, or another pipeline run makes the same output.
            SystemExit: the training has failed.
        """
        self._remove_earlier()
        self._create(request(self.name, command, cluster, self._kind(cluster["runtime"])))
        try:
            self._follow()
        finally:
            with suppress(UserError):  # must not hide an earlier error
                self._delete(PARTING_SECONDS)

    def _kind(self, runtime: str) -> str:
        objects = self._objects
        if self._call(objects.get_namespaced_custom_object, GROUP, VERSION, self._namespace, "trainingruntimes", runtime):
            return "TrainingRuntime"
        if self._call(objects.get_cluster_custom_object, GROUP, VERSION, "clustertrainingruntimes", runtime):
            return "ClusterTrainingRuntime"
        hint = "install Kubeflow Trainer, and apply deploy/training-runtime.yaml or set trainer.runtime"
        raise UserError(f"TrainJob {self.name}: there is no training runtime {runtime}; {hint}")

    def _create(self, body: dict[str, Any]) -> None:
        try:
            self._call(self._objects.create_namespaced_custom_object, GROUP, VERSION, self._namespace, TRAINJOBS, body)
        except _ConflictError:
            log.info("TrainJob %s exists: the API had lost the answer", self.name)

    def _get(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._call(self._objects.get_namespaced_custom_object, *self._place())
        return found

    def _delete(self, patience: float) -> None:
        """Deletes it; it exists until its pods are gone."""
        delete = self._objects.delete_namespaced_custom_object
        self._call(delete, *self._place(), patience=patience, propagation_policy="Foreground")

    def _place(self) -> tuple[str, ...]:
        return GROUP, VERSION, self._namespace, TRAINJOBS, self.name

    def _nodes(self) -> list[nodes.Node]:
        selector = f"{nodes.JOBSET_LABEL}={self.name}"
        pods = self._call(self._core.list_namespaced_pod, self._namespace, label_selector=selector).items
        return sorted(map(nodes.node, pods), key=lambda node: (node.number, node.pod))

    def _remove_earlier(self) -> None:
        """Deletes a TrainJob of this name and waits until it has no pods, which would still write to the checkpoint."""
        if job := self._get():
            self._refuse_foreign(job)
            log.info("TrainJob %s of an earlier attempt is replaced", self.name)
        self._delete(PATIENCE_SECONDS)
        begun = time.monotonic()
        while (left := self._nodes()) or self._get():
            self._report(left)
            if time.monotonic() - begun > PATIENCE_SECONDS:
                pods = ", ".join(node.pod for node in left)
                hint = "delete them if their node is lost"
                raise TemporaryError(f"TrainJob {self.name}: pods of an earlier attempt do not end ({pods}); {hint}")
            time.sleep(POLL_SECONDS)
        self._said.clear()

    def _refuse_foreign(self, job: dict[str, Any]) -> None:
        """Refuses to replace the TrainJob of another pipeline run that has a pod left: its step `launch` follows it."""
        run = job["metadata"].get("labels", {}).get(RUN_LABEL)
        if run in (None, os.environ.get(KFP_VARIABLE)):
            return
        pods = self._call(self._core.list_namespaced_pod, self._namespace, label_selector=f"{STEP_LABEL}={run}").items
        if any(pod.status.phase in ("Pending", "Running") for pod in pods):
            remedy = f"wait for it, or end it with `python -m pipelines cancel {run}`"
            raise TemporaryError(f"TrainJob {self.name}: the pipeline run {run} is making the same output; {remedy}")

    def _follow(self) -> None:
        while True:
            job = self._get()
            if job is None:
                raise UserError(f"TrainJob {self.name}: was deleted while it ran; submit the pipeline again to continue")
            found = self._nodes()
            self._report(found)
            for node in found:
                self._show_log(node)
            conditions = {each["type"]: each for each in job.get("status", {}).get("conditions", []) if each["status"] == "True"}
            if "Complete" in conditions:
                return
            self._stop_at_a_mistake(found)
            if "Failed" in conditions:
                self._fail(conditions["Failed"], found)
            if not found and "Suspended" in conditions:
                self._say("", f"is suspended: {conditions['Suspended'].get('message', '')}")
            time.sleep(POLL_SECONDS)

    def _report(self, found: list[nodes.Node]) -> None:
        for node in found:
            self._say(node.pod, f"node {node.number} {node.state}")

    def _say(self, subject: str, text: str) -> None:
        """Logs a state if it has changed."""
        if self._said.get(subject) != text:
            self._said[subject] = text
            log.info("TrainJob %s: %s", self.name, text)

    def _show_log(self, node: nodes.Node) -> None:
        """Logs what a node has logged since the last time; after a restart, the end of the log of the earlier container first."""
        position = self._positions.get(node.pod, nodes.Position())
        for previous in (True, False) if node.restarts > position.restarts else (False,):
            options = {"timestamps": True, "previous": previous, **position.seconds()}
            now = datetime.now(UTC)
            try:
                text = self._core.read_namespaced_pod_log(
                    node.pod, self._namespace, container=nodes.CONTAINER, _request_timeout=TIMEOUT_SECONDS, **options
                )
            except (client.ApiException, urllib3.exceptions.HTTPError, ValueError):
                continue  # there is no log yet or no longer, or the API does not answer: the next round reads it
            lines, stamp = nodes.new_lines(text, position)
            position = nodes.Position(stamp, now, node.restarts)
            self._tails.setdefault(node.pod, deque(maxlen=LAST_LINES)).extend(lines)
            for line in lines:
                log.info("%s%s", f"node {node.number}: " if node.number else "", line)
        self._positions[node.pod] = position

    def _stop_at_a_mistake(self, found: list[nodes.Node]) -> None:
        """Raises the message of a node that has ended with exit code 2, which a runtime may restart in vain."""
        for node in found:
            if node.exit_code == USER_ERROR:  # one of them has the message
                for line in reversed(self._tails.get(node.pod, ())):
                    if line.startswith(MESSAGE):
                        raise UserError(line.removeprefix(MESSAGE))

    def _fail(self, condition: dict[str, Any], found: list[nodes.Node]) -> None:
        ended = "; ".join(f"node {node.number} {node.state}" for node in found) or "its nodes are gone"
        why = f"{condition.get('reason', '')}, {condition.get('message', '')}"
        log.error("TrainJob %s has failed (%s): %s; the logs of its nodes are above", self.name, why, ended)
        raise SystemExit(USER_ERROR if any(node.exit_code == USER_ERROR for node in found) else 1)

    def _call(self, function: Callable[..., Any], *arguments: Any, patience: float = PATIENCE_SECONDS, **options: Any) -> Any:
        """Calls the API, again and again while it does not answer; returns None if the object does not exist.

        Raises:
            UserError: it refuses.
            TemporaryError: it has not answered in time.
        """
        begun, warned = time.monotonic(), False
        while True:
            try:
                return function(*arguments, **options, _request_timeout=TIMEOUT_SECONDS)
            except client.ApiException as error:
                if error.status == 404:
                    return None
                if error.status != 429 and error.status < 500:
                    raise self._refusal(error) from None
                cause = f"{error.status}, {error.reason}"
            except urllib3.exceptions.HTTPError as error:
                cause = str(getattr(error, "reason", None) or error).split(": ")[-1]
            waited = time.monotonic() - begun
            if waited > patience:
                raise TemporaryError(
                    f"TrainJob {self.name}: the API of Kubernetes does not answer ({cause}); check the control plane"
                ) from None
            if not warned:
                log.warning("the API of Kubernetes does not answer (%s); trying again for %.0f minutes", cause, patience / 60)
            warned = True
            time.sleep(POLL_SECONDS)

    def _refusal(self, error: client.ApiException) -> UserError:
        kind, said = _ConflictError if error.status == 409 else UserError, nodes.message(error)
        return kind(f"TrainJob {self.name}: Kubernetes refuses ({error.status}, {said}); check Kubeflow Trainer and deploy/rbac.yaml")


class _ConflictError(UserError):
    """The object to create exists."""


def request(name: str, command: list[str], cluster: dict[str, Any], kind: str) -> dict[str, Any]:
    """Returns the body of the request: a TrainJob whose nodes are as `cluster` describes; `kind` is that of the runtime."""
    passed = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    environment = {**cluster["environment"], **passed, SECRETS_VARIABLE: SECRETS_FOLDER}
    mounts = [{"name": volume["name"], "mountPath": path} for volume, path in cluster["volumes"]]
    pod = {
        "serviceAccountName": cluster["service_account"],
        "volumes": [volume for volume, _ in cluster["volumes"]],
        "containers": [{"name": nodes.CONTAINER, "volumeMounts": mounts}],
        "imagePullSecrets": cluster["image_pull_secrets"],
        "securityContext": cluster["security_context"],
        "nodeSelector": cluster["node_selector"],
        "tolerations": cluster["tolerations"],
        "affinity": cluster["affinity"],
    }
    run = {RUN_LABEL: os.environ.get(KFP_VARIABLE, "none")}
    metadata = {"labels": {**nodes.WITHOUT_SIDECAR, **run}, "annotations": cluster["annotations"]}
    template = {"metadata": metadata, "spec": {name: value for name, value in pod.items() if value}}
    job = {"name": nodes.CONTAINER, "template": {"spec": {"template": template}}}
    trainer = {
        "image": cluster["image"],
        "command": ["sh", "-c", WITH_SECRETS, "sh", *command],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "numNodes": cluster["nodes"],
        # Trainer would start a process per core on nodes whose resource is not called gpu.
        "numProcPerNode": cluster["processes"],
        "resourcesPerNode": cluster["resources"],
    }
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": {**run, **cluster["labels"]}},
        "spec": {
            "runtimeRef": {"name": cluster["runtime"], "kind": kind},
            "activeDeadlineSeconds": cluster["deadline_seconds"],
            "trainer": trainer,
            "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}],
        },
    }
