"""A double of the API of Kubeflow Pipelines (v2beta1) and its UI on loopback, as strict about packages and parameters as the real one.

A run goes through the frames of `PROGRESS`, one with each request; its tasks are the nodes that `argo.listing` makes of its package.
"""

import json
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from tests.http_server import in_background
from tests.pipelines import argo

PREFIX = "/apis/v2beta1"
Frame = tuple[str, dict[str, Any] | list[dict[str, Any]] | None]
"""State of a run, and the outcomes of its tasks for `argo.listing`, or the tasks themselves, or None before there are any."""
PROGRESS: list[Frame] = [
    ("PENDING", None),
    ("RUNNING", {"begin": "PENDING"}),
    ("RUNNING", {"preprocess#0": argo.CACHED, "preprocess#1": "RUNNING"}),
    ("RUNNING", {"preprocess#0": argo.CACHED, "pretrain": ("PENDING", 2)}),
]


RUN = ("display_name", "experiment_id", "pipeline_version_reference", "runtime_config", "service_account", "plugins_input")
"""Fields of a run, which a recurring run has as well."""
CRON = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
"""Second, minute, hour, day, month and weekday in github.com/robfig/cron, version 1."""


class RefusalError(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Double(ThreadingHTTPServer):
    """The content of the server, and switches for its behaviour."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.experiments: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.recurring: dict[str, dict[str, Any]] = {}
        self.token = ""
        """If set, requests need this token."""
        self.cookie = ""
        """If set, requests need this cookie."""
        self.silence = 0.0
        """Seconds before each answer."""
        self.page = b""
        """If set, the answer to each request, such as a login page."""
        self.broken = 0
        """Number of requests that are answered with 503."""
        self.frames = [*PROGRESS, ("SUCCEEDED", {"preprocess#0": argo.CACHED, "pretrain": ("SUCCEEDED", 2)})]
        """Progress of new runs; the last frame stays."""
        self.logs: dict[str, str] = {}
        """Log by pod."""
        self.multi_user = True
        self.foreign: set[str] = set()
        """Namespaces in which the user has no rights."""
        self.most = 200
        """Most recurring runs in an answer."""
        self.has_ui = True
        """Whether the address is that of the UI, which serves the logs under another path than the API."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores clients that hang up."""

    def log(self, path: str, query: dict[str, str]) -> str | None:
        """Returns the log that a request asks for; None if it asks for something else."""
        match path.strip("/").split("/"):
            case ["k8s", "pod", "logs"] if self.has_ui and query["runid"] in self.runs:
                pod = query["podname"]
            case ["apis", "v1alpha1", "runs", run, "nodes", pod, "log"] if not self.has_ui and run in self.runs:
                pass
            case _:
                return None
        if pod not in self.logs:
            raise RefusalError(500, "Could not get main container logs: Error: Unable to retrieve workflow status: [object Object].")
        return self.logs[pod]

    def answer(self, method: str, path: str, query: dict[str, str], body: dict[str, Any], file: bytes) -> dict[str, Any]:
        match method, path.strip("/").split("/"):
            case "GET", ["healthz"]:
                return {"multi_user": self.multi_user}
            case "GET", ["experiments"]:
                if query.get("namespace", "") in self.foreign:
                    raise RefusalError(403, "User is not authorized with reason: user cannot list experiments in this namespace")
                return {"experiments": _filtered(self.experiments, query)}
            case "POST", ["experiments"]:
                return _add(self.experiments, "experiment_id", _known(body, "display_name", "namespace"))
            case "GET", ["pipelines"]:
                return {"pipelines": _filtered(self.pipelines, query)}
            case "POST", ["pipelines", "upload"]:
                _parse(file)
                return _add(self.pipelines, "pipeline_id", {"display_name": query["name"]})
            case "GET", ["pipelines", pipeline, "versions"]:
                mine = {name: one for name, one in self.versions.items() if one["pipeline_id"] == pipeline}
                return {"pipeline_versions": _filtered(mine, query)}
            case "GET", ["pipelines", _, "versions", version]:
                return _get(self.versions, version)
            case "POST", ["pipelines", "upload_version"]:
                return self._add_version(query, file)
            case "POST", ["runs"]:
                return self._start(_known(body, *RUN))
            case "GET", ["runs"]:
                mine = [run for run in self.runs.values() if run["experiment_id"] == query["experiment_id"]]
                assert query["sort_by"] == "created_at desc"
                return {"runs": sorted(map(self._advance, mine), key=lambda run: str(run["created_at"]), reverse=True)}
            case "GET", ["runs", run]:
                return self._advance(_get(self.runs, run))
            case "POST", ["runs", run] if run.endswith(":terminate"):
                _get(self.runs, run.removesuffix(":terminate"))["frames"] = [("CANCELING", None), ("CANCELED", None)]
                return {}
            case "POST", ["recurringruns"]:
                return self._schedule(_known(body, *RUN, "trigger", "mode", "max_concurrency", "no_catchup"))
            case "GET", ["recurringruns"]:
                mine = [one for one in self.recurring.values() if one["experiment_id"] == query["experiment_id"]]
                first = int(query.get("page_token") or 0)
                after = first + min(int(query["page_size"]), self.most)
                more = {"next_page_token": str(after)} if after < len(mine) else {}
                return {"recurringRuns": mine[first:after], "total_size": len(mine), **more}
            case "POST", ["recurringruns", change]:
                identity, _, verb = change.partition(":")
                _get(self.recurring, identity)["status"] = {"enable": "ENABLED", "disable": "DISABLED"}[verb]
                return {}
            case "DELETE", ["recurringruns", identity]:
                _get(self.recurring, identity)
                del self.recurring[identity]
                return {}
        raise RefusalError(404, "")

    def _schedule(self, body: dict[str, Any]) -> dict[str, Any]:
        """Creates a recurring run, as backend/src/apiserver/server/job_server.go and api_converter.go of kubeflow/pipelines check it."""
        self._check(body)
        if not 1 <= int(body["max_concurrency"]) <= 10:
            raise RefusalError(400, "The max concurrency of the recurring run is out of range")
        _check_cron(body["trigger"]["cron_schedule"]["cron"])
        status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[body.pop("mode")]
        return _add(self.recurring, "recurring_run_id", {**body, "status": status, "created_at": _now()})

    def tick(self, identity: str) -> dict[str, Any]:
        """Starts a run of a schedule, as the controller does when its time has come."""
        recurring = self.recurring[identity]
        body = {name: value for name, value in recurring.items() if name in RUN}
        return self._start({**body, "display_name": f"{recurring['display_name']}-1", "recurring_run_id": identity})

    def _add_version(self, query: dict[str, str], file: bytes) -> dict[str, Any]:
        pipeline = _get(self.pipelines, query["pipelineid"])["pipeline_id"]
        if any(one["display_name"] == query["name"] and one["pipeline_id"] == pipeline for one in self.versions.values()):
            raise RefusalError(409, f"the version {query['name']} exists")
        return _add(
            self.versions, "pipeline_version_id", {"display_name": query["name"], "pipeline_id": pipeline, "pipeline_spec": _parse(file)}
        )

    def _start(self, body: dict[str, Any]) -> dict[str, Any]:
        self._check(body)
        return self._advance(_add(self.runs, "run_id", {**body, "created_at": _now(), "frames": list(self.frames)}))

    def _check(self, body: dict[str, Any]) -> None:
        """Checks what a run and a recurring run have in common."""
        if not body.get("display_name"):
            raise RefusalError(400, "The name is empty. Please specify a valid name")
        _get(self.experiments, body["experiment_id"])
        version = _get(self.versions, body["pipeline_version_reference"]["pipeline_version_id"])
        _check_parameters(_spec(version["pipeline_spec"]["pipeline_spec"]), body["runtime_config"].get("parameters", {}))
        _known(body.get("plugins_input", {}).get("mlflow", {}), "experiment_name", "experiment_id", "disabled")

    def _advance(self, run: dict[str, Any]) -> dict[str, Any]:
        state, tasks = run["frames"].pop(0) if len(run["frames"]) > 1 else run["frames"][0]
        if isinstance(tasks, dict):
            version = self.versions[run["pipeline_version_reference"]["pipeline_version_id"]]
            tasks = argo.listing(version["pipeline_spec"]["pipeline_spec"], tasks)
        details = {"run_details": {"task_details": tasks}} if tasks else {}
        error = {"error": {"message": "pretrain: ran out of\nmemory"}} if state == "FAILED" else {}
        return {**{k: v for k, v in run.items() if k != "frames"}, "state": state, **details, **error}


class _Handler(BaseHTTPRequestHandler):
    server: Double

    def _handle(self) -> None:
        time.sleep(self.server.silence)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = urlsplit(self.path)
        try:
            self._authenticate()
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            multipart = self.headers.get_content_type() == "multipart/form-data"
            content = {} if multipart or not body else json.loads(body)
            file = _uploaded(self.headers["Content-Type"], body) if multipart else b""
            log = self.server.log(address.path, query)
            if log is not None:
                return self._send(200, log.encode(), "text/plain")
            if not address.path.startswith(PREFIX):
                raise RefusalError(404, "")
            self._send(200, json.dumps(self.server.answer(self.command, address.path.removeprefix(PREFIX), query, content, file)).encode())
        except RefusalError as refusal:
            said = {"error": "Details", "code": 3, "message": str(refusal)} if str(refusal) else None
            self._send(refusal.status, json.dumps(said).encode() if said else b"page not found")

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

    def _authenticate(self) -> None:
        if self.server.broken:
            self.server.broken -= 1
            raise RefusalError(503, "upstream is unavailable")
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            raise RefusalError(401, "Unauthenticated")
        if self.server.cookie and self.headers.get("Cookie") != self.server.cookie:
            raise RefusalError(401, "Unauthenticated")

    def _send(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "text/html" if self.server.page else kind)
        self.end_headers()
        self.wfile.write(self.server.page or content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing."""


def _uploaded(content_type: str, body: bytes) -> bytes:
    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    content = message.get_payload()[0].get_payload(decode=True)  # type: ignore[union-attr, index]
    assert isinstance(content, bytes)
    return content


def _parse(file: bytes) -> dict[str, Any]:
    """Parses a package, one or two documents without keys that the protobuf of kfp does not know; returns it as the server does."""
    try:
        documents = list(yaml.safe_load_all(file.decode()))
        spec = _spec(documents[0])
        for other in documents[1:]:
            json_format.ParseDict(other, pipeline_spec_pb2.PlatformSpec())
    except (yaml.YAMLError, json_format.ParseError, IndexError) as error:
        raise RefusalError(400, f"invalid pipeline spec: {error}") from None
    if not spec.root.dag.tasks:
        raise RefusalError(400, "invalid pipeline spec: no tasks")
    return dict(zip(("pipeline_spec", "platform_spec"), documents, strict=False))


def _spec(document: dict[str, Any]) -> pipeline_spec_pb2.PipelineSpec:
    spec: pipeline_spec_pb2.PipelineSpec = json_format.ParseDict(document, pipeline_spec_pb2.PipelineSpec())
    return spec


def _check_parameters(spec: pipeline_spec_pb2.PipelineSpec, given: dict[str, Any]) -> None:
    known = spec.root.input_definitions.parameters
    kinds = {"STRING": str, "NUMBER_DOUBLE": int | float, "NUMBER_INTEGER": int, "LIST": list, "BOOLEAN": bool}
    for name, value in given.items():
        if name not in known:
            raise RefusalError(400, f"parameter {name} is not in the pipeline")
        kind = pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name(known[name].parameter_type)
        if not isinstance(value, kinds[kind]):
            raise RefusalError(400, f"parameter {name} must be {kind}")
    missing = [name for name, one in known.items() if name not in given and not one.HasField("default_value") and not one.is_optional]
    if missing:
        raise RefusalError(400, f"parameters {', '.join(sorted(missing))} are missing")


def _check_cron(text: str) -> None:
    """Refuses what is not six fields of numbers in their bounds. The real server takes five, too, which then have other meanings."""
    fields = text.split()
    bad = [field for field, (low, high) in zip(fields, CRON, strict=False) for number in re.findall(r"(?<!/)\b\d+", field)
           if not low <= int(number) <= high]  # fmt: skip
    if len(fields) != len(CRON) or bad:
        raise RefusalError(400, f"The input cron schedule is not a supported format: {text}")


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _filtered(known: dict[str, dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    if "filter" not in query:
        return list(known.values())
    predicate = json.loads(query["filter"])["predicates"][0]
    assert predicate["operation"] == "EQUALS"
    return [one for one in known.values() if one[predicate["key"]] == predicate["stringValue"]]


def _known(body: dict[str, Any], *names: str) -> dict[str, Any]:
    if strange := set(body) - set(names):
        raise RefusalError(400, f"unknown fields {strange}")
    return body


def _get(known: dict[str, dict[str, Any]], identity: str) -> dict[str, Any]:
    if identity not in known:
        raise RefusalError(404, f"{identity} not found")
    return known[identity]


def _add(known: dict[str, dict[str, Any]], key: str, content: dict[str, Any]) -> dict[str, Any]:
    identity = str(uuid.uuid4())
    known[identity] = {key: identity, **content}
    return known[identity]


@contextmanager
def serve() -> Iterator[Double]:
    double = Double()
    with in_background(double):
        yield double
