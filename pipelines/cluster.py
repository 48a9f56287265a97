"""The Kubernetes API with the rights of the user, from the kubeconfig, for what Kubeflow Pipelines does not tell."""

import os
from collections.abc import Callable
from typing import Any

import urllib3
from kubernetes import client, config

from components.common.errors import UserError
from components.pretrain.nodes import JOBSET_LABEL, Node, message, node

TIMEOUT_SECONDS = (5, 30)  # for the connection, and for the answer
SINGLE_USER_NAMESPACE = "kubeflow"  # where a single-user installation runs everything
MAIN = "main"  # container of a pod of Argo in which the step runs
RUN_LABEL = "cxr/pipeline-run"
"""Label of the TrainJobs that components/pretrain/trainjob.py creates. Kubeflow gives a cancelled step no chance to delete them."""


class RefusedError(UserError):
    """An answer of the API other than success."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Cluster:
    """A namespace of the cluster."""

    def __init__(self, namespace: str | None):
        """Reads the kubeconfig, or in a pod its service account.

        Raises:
            UserError: there is none.
        """
        self.namespace = namespace or SINGLE_USER_NAMESPACE
        configuration = client.Configuration()
        try:
            load = config.load_incluster_config if "KUBERNETES_SERVICE_HOST" in os.environ else config.load_kube_config
            load(client_configuration=configuration)
        except config.ConfigException as error:
            raise UserError(f"Kubernetes: no kubeconfig ({error}); set KUBECONFIG") from None
        configuration.retries = urllib3.Retry(0)
        self.api = client.ApiClient(configuration)
        self.core = client.CoreV1Api(self.api)
        self._objects = client.CustomObjectsApi(self.api)

    def log(self, pod: str, container: str = MAIN) -> str:
        """Returns the log of a container of a pod, by default that of a step; the client itself would parse one that happens to be JSON."""

        def read(**options: Any) -> bytes:
            given = {"container": container, "_preload_content": False, **options}
            return bytes(self.core.read_namespaced_pod_log(pod, self.namespace, **given).data)

        return str(self.call(read).decode(errors="replace"))

    def trainjobs(self, run: str) -> dict[str, list[Node]]:
        """Returns the nodes of the TrainJobs of a run by name."""
        listed = self.call(self._objects.list_namespaced_custom_object, *self._trainjobs(), label_selector=f"{RUN_LABEL}={run}")
        return {job["metadata"]["name"]: self._nodes(job["metadata"]["name"]) for job in listed["items"]}

    def delete_trainjob(self, name: str) -> None:
        """Deletes a TrainJob, and so its pods."""
        self.call(self._objects.delete_namespaced_custom_object, *self._trainjobs(), name)

    def _trainjobs(self) -> tuple[str, ...]:
        return "trainer.kubeflow.org", "v1alpha1", self.namespace, "trainjobs"

    def _nodes(self, job: str) -> list[Node]:
        pods = self.call(self.core.list_namespaced_pod, self.namespace, label_selector=f"{JOBSET_LABEL}={job}").items
        return sorted(map(node, pods), key=lambda each: (each.number, each.pod))

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls the API.

        Raises:
            RefusedError: it refuses.
            UserError: it does not answer.
        """
        try:
            return function(*arguments, **options, _request_timeout=TIMEOUT_SECONDS)
        except client.ApiException as error:
            raise RefusedError(f"Kubernetes: answers {error.status}, {message(error)}", error.status) from None
        except urllib3.exceptions.HTTPError as error:
            raise UserError(f"Kubernetes: does not answer ({getattr(error, 'reason', None) or error})") from None
