"""The API of Kubeflow Pipelines (v2beta1), by the generated client that kfp.Client is built on, with a timeout on every call.

kfp.Client itself takes no timeout, retries for half a minute, prints, and reads another session's cookie from the home folder.
"""

import argparse
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import kfp_server_api as api
import urllib3
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV as TOKEN_FILE_VARIABLE
from kfp.client import KF_PIPELINES_SA_TOKEN_PATH as TOKEN_FILE

from components.common.errors import UserError
from pipelines.progress import Node
from pipelines.settings import RUN_PAGE, Settings

TIMEOUT_SECONDS = (10, 30)  # for the connection, and for the answer
TOKEN_VARIABLE = "KFP_TOKEN"  # noqa: S105
"""A bearer token; without it, the file that kfp names is read: the token of a service account, which Kubernetes renews."""
COOKIE_VARIABLE = "KFP_COOKIE"  # cookie of a browser session, such as `oauth2_proxy_kubeflow=...`
HOW_TO_LOG_IN = f"set {TOKEN_VARIABLE}, {TOKEN_FILE_VARIABLE} or {COOKIE_VARIABLE}"
WITHOUT_PLUGINS = {"mlflow": {"disabled": True}}
"""Input of Kubeflow's plugins for a run: its own MLflow plugin would log each step a second time, with the addresses (ADR 16)."""
FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


class Submission(NamedTuple):
    """Everything that is sent, besides the package."""

    host: str
    namespace: str | None  # namespace of the profile; None for a single-user installation
    experiment: str
    pipeline: str
    version: str
    run: str  # display name of the run or schedule
    service_account: str | None  # service account of the pods; None: the default of the server
    parameters: dict[str, Any]


class RunStatus(NamedTuple):
    """A run as the server reports it."""

    identity: str
    name: str
    state: str
    error: str  # why it failed; empty if it did not, or if the server does not say
    version: tuple[str, str]  # ids of the pipeline and of its version
    nodes: list[Node]


class LostError(UserError):
    """The server does not answer at present: another attempt may succeed."""


class DeniedError(UserError):
    """The credentials are missing, wrong or expired, or do not suffice."""


class ConflictError(UserError):
    """The object to create exists."""


class MissingError(UserError):
    """The object does not exist, or no longer."""


class KubeflowServer:
    """A server, and the credentials for it."""

    def __init__(self, host: str, namespace: str | None):
        """Does not call the server yet.

        Args:
            host: address of the UI or the API.
            namespace: namespace of the profile; None for a single-user installation.

        Raises:
            UserError: the address is malformed, or the token cannot be read.
        """
        if not host.startswith(("http://", "https://")):
            raise UserError(f"--host {host}: must begin with http:// or https://")
        self.host, self.namespace = host.rstrip("/"), namespace
        self._in_namespace = {"namespace": namespace} if namespace else {}
        configuration = api.Configuration(self.host)
        configuration.retries = urllib3.Retry(1, redirect=2)
        if token := _token():
            configuration.api_key["authorization"] = token
            configuration.api_key_prefix["authorization"] = "Bearer"
            configuration.refresh_api_key_hook = lambda ours: ours.api_key.update(authorization=_token())
        client = self.client = api.ApiClient(configuration, cookie=os.environ.get(COOKIE_VARIABLE))
        self._health, self._runs = api.HealthzServiceApi(client), api.RunServiceApi(client)
        self._experiments, self._pipelines = api.ExperimentServiceApi(client), api.PipelineServiceApi(client)
        self._uploads = api.PipelineUploadServiceApi(client)

    def start(self, submission: Submission, package: Path) -> str:
        """Starts a run of a package and returns its id."""
        run = api.V2beta1Run(**self.upload(submission, package))
        return str(self.call(self._runs.run_service_create_run, run).run_id)

    def upload(self, submission: Submission, package: Path) -> dict[str, Any]:
        """Uploads a package, unless the server has this version; returns what a run and a recurring run of it have in common."""
        self.check()
        experiment = self._experiment(submission.experiment)
        pipeline, version = self._version(package, submission.pipeline, submission.version)
        return {
            "experiment_id": experiment,
            "display_name": submission.run,
            "pipeline_version_reference": api.V2beta1PipelineVersionReference(pipeline_id=pipeline, pipeline_version_id=version),
            "runtime_config": api.V2beta1RuntimeConfig(parameters=submission.parameters),
            "service_account": submission.service_account,
            "plugins_input": WITHOUT_PLUGINS,
        }

    def check(self) -> None:
        """Checks that the server is of the kind that the namespace fits, and that the credentials suffice for this namespace.

        Raises:
            UserError: it is not.
        """
        health = self.call(self._health.healthz_service_get_healthz)
        if not isinstance(health, api.V2beta1GetHealthzResponse):
            raise self._not_kubeflow()
        if health.multi_user and not self.namespace:
            raise UserError(f"{self.host}: is a multi-user Kubeflow; set server.namespace to that of your profile, or give --namespace")
        if self.namespace and health.multi_user is False:
            remedy = "leave out server.namespace and --namespace, and apply deploy/ to that namespace"
            raise UserError(f"{self.host}: is a single-user Kubeflow, which runs everything in its own namespace; {remedy}")
        # Whether it is alive, a server tells anyone.
        self.call(self._experiments.experiment_service_list_experiments, page_size=1, **self._in_namespace)

    def _experiment(self, name: str) -> str:
        """Returns the id of an experiment, which is created if it does not exist."""
        wanted = api.V2beta1Experiment(display_name=name, **self._in_namespace)
        return self.find_experiment(name) or str(self.call(self._experiments.experiment_service_create_experiment, wanted).experiment_id)

    def find_experiment(self, name: str) -> str | None:
        """Returns the id of an experiment; None if it does not exist."""
        listed = self.call(self._experiments.experiment_service_list_experiments, filter=_by_name(name), **self._in_namespace).experiments
        return str(listed[0].experiment_id) if listed else None

    def _version(self, package: Path, name: str, version: str) -> tuple[str, str]:
        """Returns the ids of a pipeline and of its version; an existing version is used, since its name identifies its content."""
        listed = self.call(self._pipelines.pipeline_service_list_pipelines, filter=_by_name(name), **self._in_namespace).pipelines
        if not listed:
            listed = [self.call(self._uploads.upload_pipeline, str(package), name=name, display_name=name, **self._in_namespace)]
        pipeline = str(listed[0].pipeline_id)
        names = {"name": version, "display_name": version}
        try:
            sent = self.call(self._uploads.upload_pipeline_version, str(package), pipelineid=pipeline, **names)
        except ConflictError:
            list_versions = self._pipelines.pipeline_service_list_pipeline_versions
            found = self.call(list_versions, pipeline, filter=_by_name(version)).pipeline_versions
            if not found:
                raise
            sent = found[0]
        return pipeline, str(sent.pipeline_version_id)

    def run(self, identity: str) -> RunStatus:
        """Returns the status of a run."""
        found = self.call(self._runs.run_service_get_run, identity)
        tasks = (found.run_details.task_details if found.run_details else None) or []
        error = _one_line(found.error.message or "") if found.error else ""
        used = found.pipeline_version_reference
        version = (used.pipeline_id or "", used.pipeline_version_id or "") if used else ("", "")
        return RunStatus(
            identity, found.display_name or identity, found.state or "PENDING", error, version, [_node(task) for task in tasks]
        )

    def package(self, run: RunStatus) -> dict[str, Any] | None:
        """Returns `pipeline_spec` and `platform_spec` of the package that a run came from; None if that version was deleted."""
        try:
            content: dict[str, Any] = self.call(self._pipelines.pipeline_service_get_pipeline_version, *run.version).pipeline_spec
        except MissingError:
            return None
        return content if "pipeline_spec" in content else {"pipeline_spec": content}

    def log(self, run: str, pod: str) -> str | None:
        """Returns the log of a pod of a run, from the UI, which also reads archived logs, or from the API; None if neither has it."""
        namespace = {"podnamespace": self.namespace} if self.namespace else {}
        for path, query in (
            ("/k8s/pod/logs", {"podname": pod, "runid": run, **namespace}),
            (f"/apis/v1alpha1/runs/{run}/nodes/{pod}/log", {}),
        ):
            with contextlib.suppress(UserError):
                return cast(str, self.call(self._text, path, list(query.items())))
        return None

    def _text(self, path: str, query: list[tuple[str, str]], **options: Any) -> str:
        """Returns the body of an answer. The client itself would parse a text that happens to be JSON."""
        options |= {"auth_settings": ["Bearer"], "_preload_content": False}
        return str(self.client.call_api(path, "GET", {}, query, {}, **options).data.decode(errors="replace"))

    def terminate(self, identity: str) -> None:
        """Stops a run."""
        self.call(self._runs.run_service_terminate_run, identity)

    def link(self, identity: str) -> str:
        """Returns the address of a run in the UI."""
        return f"{self.host}{RUN_PAGE}{identity}"

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls the server.

        Raises:
            LostError: it does not answer at present.
            UserError: it refuses, or is another kind of server.
        """
        try:
            return function(*arguments, **options, _request_timeout=TIMEOUT_SECONDS)
        except urllib3.exceptions.HTTPError as error:
            raise LostError(f"{self.host}: {_reason(error)}; check the address and the network") from None
        except api.ApiException as error:
            raise self._refusal(error) from None
        except (ValueError, TypeError, AttributeError):  # raised by the client for a page that is not JSON
            raise self._not_kubeflow() from None

    def _refusal(self, error: api.ApiException) -> UserError:
        said = _message(error.body)
        if error.status in (401, 403):
            return DeniedError(f"{self.host}: answers {error.status}, {said or 'not allowed'}; {HOW_TO_LOG_IN}")
        if error.status == 404 and not said:
            return self._not_kubeflow()
        if error.status == 0:
            return UserError(f"{self.host}: {_one_line(error.reason)}; check the address")
        if error.status >= 500 or error.status == 429:
            return LostError(f"{self.host}: answers {error.status}, {said or error.reason}; try again later")
        kind = {404: MissingError, 409: ConflictError}.get(error.status, UserError)
        return kind(f"{self.host}: refuses with {error.status}, {said or error.reason}")

    def _not_kubeflow(self) -> UserError:
        return UserError(f"{self.host}: is not the API of Kubeflow Pipelines; check the address; for a login page, {HOW_TO_LOG_IN}")


def connect(options: argparse.Namespace, settings: Settings) -> KubeflowServer:
    """Returns the server that --host and --namespace name, or else the settings."""
    host = options.host or settings.server.host
    if not host:
        raise UserError("--host: is missing, and the settings have no server.host; give one of them")
    return KubeflowServer(host, options.namespace or settings.server.namespace)


def _node(task: api.V2beta1PipelineTaskDetail) -> Node:
    """Converts an entry of the list of tasks; the end of a node that runs is missing, or a time long ago."""
    below = frozenset(child.pod_name for child in task.child_tasks or [] if child.pod_name)
    end = task.end_time if task.start_time and task.end_time and task.end_time >= task.start_time else None
    return Node(task.display_name or "", task.state or "", task.start_time, end, below)


def _token() -> str:
    """Returns the bearer token; empty if a cookie is used, or no credentials are needed.

    Raises:
        UserError: the file cannot be read.
    """
    if token := os.environ.get(TOKEN_VARIABLE):
        return token.strip()
    path = os.environ.get(TOKEN_FILE_VARIABLE) or (TOKEN_FILE if Path(TOKEN_FILE).exists() else "")
    try:
        return Path(path).read_text(encoding="utf-8").strip() if path else ""
    except OSError as error:
        raise UserError(f"{TOKEN_FILE_VARIABLE}: {path} cannot be read ({error.strerror})") from None


def _by_name(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _reason(error: Exception) -> str:
    """Returns the cause of a network error in a few words."""
    cause = getattr(error, "reason", None) or error
    if isinstance(cause, urllib3.exceptions.TimeoutError) and not isinstance(cause, urllib3.exceptions.NewConnectionError):
        return f"no answer within {TIMEOUT_SECONDS[1]} s"
    return _one_line(str(cause).split(": ")[-1])


def _message(body: Any) -> str:
    """Returns the message in the answer of the server, if it has one."""
    try:
        content = json.loads(body)
        return _one_line(content.get("message") or content.get("error_message") or content.get("error") or "")[:500]
    except (ValueError, TypeError, AttributeError):
        return ""
