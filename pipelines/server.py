"""The API of Kubeflow Pipelines (v2beta1), through the client that kfp itself is built on, with a time limit on every call.

kfp.Client has none, prints on its own, and waits half a minute for a server that is not there.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import kfp_server_api as api
import urllib3

from components.common.errors import UserError

TIMEOUT_SECONDS = (10, 30)
"""To connect, and to wait for an answer."""
TOKEN_VARIABLE = "KFP_TOKEN"  # noqa: S105
"""A bearer token."""
TOKEN_FILE_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105 - kfp's own name
"""File with the token of a service account, which Kubernetes renews."""
TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"  # noqa: S105
"""The same, where kfp looks for it in a pod."""
COOKIE_VARIABLE = "KFP_COOKIE"
"""Of a session in the browser, such as `oauth2_proxy_kubeflow=...`."""
HOW_TO_LOG_IN = f"set {TOKEN_VARIABLE}, {TOKEN_FILE_VARIABLE} or {COOKIE_VARIABLE}"
FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


class Task(NamedTuple):
    """A step of a run."""

    name: str
    state: str


class Run(NamedTuple):
    """A run as the server knows it."""

    identity: str
    name: str
    state: str
    error: str
    """Why it failed; empty: it did not, or nobody knows."""
    tasks: list[Task]


class LostError(UserError):
    """The server did not answer, or not now: another attempt may succeed."""


class ConflictError(UserError):
    """What was to be made is there already."""


class Server:
    """One server, and how we show who we are."""

    def __init__(self, host: str, namespace: str | None):
        """Does not call the server yet.

        Args:
            host: address of the UI or the API.
            namespace: the profile's; None where Kubeflow has a single user.

        Raises:
            UserError: no address, or a token that cannot be read.
        """
        if not host.startswith(("http://", "https://")):
            raise UserError(f"--host {host}: must begin with http:// or https://")
        self.host, self._namespace = host.rstrip("/"), namespace
        configuration = api.Configuration(self.host)
        configuration.retries = urllib3.Retry(1, redirect=2)
        if token := _token():
            configuration.api_key["authorization"] = token
            configuration.api_key_prefix["authorization"] = "Bearer"
            configuration.refresh_api_key_hook = lambda ours: ours.api_key.update(authorization=_token())
        client = api.ApiClient(configuration, cookie=os.environ.get(COOKIE_VARIABLE))
        self._health, self._runs = api.HealthzServiceApi(client), api.RunServiceApi(client)
        self._experiments, self._pipelines = api.ExperimentServiceApi(client), api.PipelineServiceApi(client)
        self._uploads = api.PipelineUploadServiceApi(client)

    def check(self) -> None:
        """Says early when this is not Kubeflow Pipelines, or we may not use it."""
        answer = self._call(self._health.healthz_service_get_healthz)
        if not isinstance(answer, api.V2beta1GetHealthzResponse):
            raise self._stranger()

    def experiment(self, name: str) -> str:
        """Id of the experiment, made if it is not there."""
        listed = self._call(self._experiments.experiment_service_list_experiments, filter=_named(name), **self._in_namespace())
        found = [one for one in listed.experiments or [] if one.display_name == name]
        if found:
            return str(found[0].experiment_id)
        wanted = api.V2beta1Experiment(display_name=name, **self._in_namespace())
        return str(self._call(self._experiments.experiment_service_create_experiment, wanted).experiment_id)

    def upload(self, package: Path, name: str, version: str) -> tuple[str, str]:
        """Uploads a package as a version of a pipeline; one that is there already is taken, since its name tells its content.

        Args:
            package: the compiled file.
            name: of the pipeline, which is made if it is not there.
            version: its name.

        Returns:
            Ids of the pipeline and the version.
        """
        pipeline = self._find_pipeline(name)
        if pipeline is None:
            made = self._call(self._uploads.upload_pipeline, str(package), name=name, display_name=name, **self._in_namespace())
            pipeline = str(made.pipeline_id)
        try:
            sent = self._call(self._uploads.upload_pipeline_version, str(package), name=version, display_name=version, pipelineid=pipeline)
        except ConflictError:
            return pipeline, self._find_version(pipeline, version)
        return pipeline, str(sent.pipeline_version_id)

    def start(self, name: str, experiment: str, version: tuple[str, str], parameters: dict[str, Any], service_account: str | None) -> str:
        """Starts a run and returns its id.

        Args:
            name: for people.
            experiment: its id.
            version: ids of the pipeline and its version.
            parameters: of the pipeline.
            service_account: of the pods; None: the server's default.
        """
        wanted = api.V2beta1Run(
            experiment_id=experiment,
            display_name=name,
            pipeline_version_reference=api.V2beta1PipelineVersionReference(pipeline_id=version[0], pipeline_version_id=version[1]),
            runtime_config=api.V2beta1RuntimeConfig(parameters=parameters),
            service_account=service_account,
        )
        return str(self._call(self._runs.run_service_create_run, wanted).run_id)

    def run(self, identity: str) -> Run:
        """Where a run is."""
        found = self._call(self._runs.run_service_get_run, identity)
        details = found.run_details.task_details if found.run_details else None
        tasks = [Task(task.display_name or task.task_id or "", task.state or "PENDING") for task in details or []]
        error = " ".join((found.error.message or "").split()) if found.error else ""
        return Run(identity, found.display_name or identity, found.state or "PENDING", error, tasks)

    def terminate(self, identity: str) -> None:
        """Stops a run."""
        self._call(self._runs.run_service_terminate_run, identity)

    def link(self, identity: str) -> str:
        """Where a run is to be seen."""
        return f"{self.host}/#/runs/details/{identity}"

    def _find_pipeline(self, name: str) -> str | None:
        listed = self._call(self._pipelines.pipeline_service_list_pipelines, filter=_named(name), **self._in_namespace())
        return next((str(one.pipeline_id) for one in listed.pipelines or [] if one.display_name == name), None)

    def _find_version(self, pipeline: str, name: str) -> str:
        listed = self._call(self._pipelines.pipeline_service_list_pipeline_versions, pipeline, filter=_named(name))
        found = [one for one in listed.pipeline_versions or [] if one.display_name == name]
        if not found:
            raise UserError(f"{self.host}: has a version {name} and does not list it; look for it in the UI")
        return str(found[0].pipeline_version_id)

    def _in_namespace(self) -> dict[str, str]:
        return {"namespace": self._namespace} if self._namespace else {}

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls the server.

        Raises:
            LostError: it does not answer.
            UserError: it refuses.
        """
        try:
            return function(*arguments, **options, _request_timeout=TIMEOUT_SECONDS)
        except urllib3.exceptions.HTTPError as error:
            raise LostError(f"{self.host}: {_reason(error)}; check the address and the network") from None
        except api.ApiException as error:
            raise self._refusal(error) from None
        except (ValueError, TypeError, AttributeError):  # what the client does with a page that is not JSON
            raise self._stranger() from None

    def _refusal(self, error: api.ApiException) -> UserError:
        said = _message(error.body)
        if error.status in (401, 403):
            return UserError(f"{self.host}: answers {error.status}, {said or 'not allowed'}; {HOW_TO_LOG_IN}")
        if error.status == 404 and not said:
            return self._stranger()
        if error.status == 0:
            return UserError(f"{self.host}: {' '.join(str(error.reason).split())}; check the address")
        if error.status >= 500 or error.status == 429:
            return LostError(f"{self.host}: answers {error.status}, {said or error.reason}; try again later")
        kind = ConflictError if error.status == 409 else UserError
        return kind(f"{self.host}: refuses with {error.status}, {said or error.reason}")

    def _stranger(self) -> UserError:
        return UserError(f"{self.host}: is not the API of Kubeflow Pipelines; check the address, and for a page to log in: {HOW_TO_LOG_IN}")


def _token() -> str:
    """What shows who we are; empty where a cookie does, or nothing need.

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


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _reason(error: Exception) -> str:
    """A network error's cause in a few words."""
    cause = getattr(error, "reason", None) or error
    if isinstance(cause, urllib3.exceptions.TimeoutError) and not isinstance(cause, urllib3.exceptions.NewConnectionError):
        return f"no answer within {TIMEOUT_SECONDS[1]} s"
    return " ".join(str(cause).split(": ")[-1].split())


def _message(body: Any) -> str:
    """What the server says in its answer, on one line."""
    try:
        content = json.loads(body)
    except (ValueError, TypeError):
        return ""
    if not isinstance(content, dict):
        return ""
    said = content.get("message") or content.get("error_message") or content.get("error") or ""
    return " ".join(str(said).split())[:500]
