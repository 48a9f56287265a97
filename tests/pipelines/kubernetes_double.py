"""A double, on loopback, of the parts of the Kubernetes API that a TrainJob needs: objects of Kubeflow Trainer, pods and their logs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubeflow_trainer_api import models

from tests.http_server import in_background

NAMESPACE = "cxr"
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
JOBS = f"{TRAINER}/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
NOW = "2026-01-01T00:00:00Z"
Frame = tuple[dict[str, Any] | None, list[dict[str, Any]]]
"""The condition of a TrainJob, if it has one, and its pods."""


def condition(kind: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": "True", "reason": reason or kind, "message": message, "lastTransitionTime": NOW}


def pod(
    name: str,
    number: int = 0,
    state: dict[str, Any] | None = None,
    last: dict[str, Any] | None = None,
    restarts: int = 0,
    unscheduled: str = "",
) -> dict[str, Any]:
    """Returns a pod of a TrainJob.

    Args:
        name: its name.
        number: number of the node.
        state: state of its container, running by default.
        last: the state before a restart.
        restarts: number of restarts.
        unscheduled: why it has no node.
    """
    scheduled = {"type": "PodScheduled", "status": "False" if unscheduled else "True", "message": unscheduled, "reason": "Unschedulable"}
    status = {"name": "node", "image": "i", "imageID": "i", "ready": True, "restartCount": restarts}
    containers = [] if unscheduled else [{**status, "state": state or {"running": {"startedAt": NOW}}, "lastState": last or {}}]
    return {
        "metadata": {"name": name, "labels": {"batch.kubernetes.io/job-completion-index": str(number)}},
        "status": {"phase": "Pending" if unscheduled else "Running", "conditions": [scheduled], "containerStatuses": containers},
    }


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason}}


def log(*lines: str, begin: int = 0) -> str:
    """Returns lines as the log of a pod with timestamps, one a second."""
    return "".join(f"2026-01-01T00:00:{begin + number:02}.000000000Z {line}\n" for number, line in enumerate(lines))


def write_kubeconfig(path: Path, server: "Kubernetes") -> None:
    """Writes the configuration of a user of the server."""
    content = {
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(content))


class Kubernetes(ThreadingHTTPServer):
    """The content of the server, and switches for its behaviour."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.runtimes = {"clustertrainingruntimes": ["torch-distributed"], "trainingruntimes": ["cxr-pretrain"]}
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.frames: list[Frame] = [(None, [pod("p-0"), pod("p-1", 1)]), (condition("Complete"), [pod("p-0")])]
        """Progress of TrainJobs; each request for one advances it, and the last frame stays."""
        self.logs: dict[tuple[str, bool], str] = {}
        """Log with timestamps by pod and whether it is that of the container before a restart."""
        self.lingering: list[dict[str, Any]] = []
        """Pods of a deleted TrainJob; each request for the pods removes one."""
        self.steps: dict[str, list[dict[str, Any]]] = {}
        """Pods that Kubeflow has started, by pipeline run."""
        self.terminating: list[dict[str, Any]] = []
        """Deleted TrainJobs that still exist; each request for one removes it."""
        self.lost = 0
        """Number of requests that are answered with 503 or, if odd, not at all."""
        self.refuses = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        *_, kind, name = path.split("/")
        if method == "GET" and name in self.runtimes.get(kind, []):
            return 200, {"metadata": {"name": name}}
        match method:
            case "POST" if path == JOBS:
                return self._create(body)
            case "GET" if path == JOBS:
                label, _, value = query["labelSelector"].partition("=")
                return 200, {"items": [job for job in self.jobs.values() if job["metadata"].get("labels", {}).get(label) == value]}
            case "GET" if path.startswith(f"{JOBS}/") and name in self.jobs:
                return 200, self._advance(self.jobs[name])
            case "DELETE" if path.startswith(f"{JOBS}/") and name in self.jobs:
                self.deleted.append(name)
                self.terminating.append(self.jobs.pop(name))
                return 200, {}
            case "GET" if path.startswith(f"{JOBS}/") and self.terminating:
                return 200, self.terminating.pop()
            case "GET" if path == PODS:
                return 200, {"apiVersion": "v1", "kind": "PodList", "items": self._pods(query["labelSelector"])}
            case "GET" if path.startswith(f"{PODS}/") and name == "log":
                text = self.logs.get((kind, query.get("previous", "").lower() == "true"))
                return (400, {"message": f"container node in pod {kind} is waiting to start"}) if text is None else (200, text)
        return 404, {"kind": "Status", "code": 404, "message": f"{path} not found"}

    def _create(self, body: dict[str, Any]) -> tuple[int, Any]:
        models.TrainerV1alpha1TrainJob.from_dict(body)  # raises if the schema is violated
        if self.refuses:
            return 403, {"kind": "Status", "code": 403, "message": "trainjobs is forbidden"}
        if body["metadata"]["name"] in self.jobs:
            return 409, {"kind": "Status", "code": 409, "message": "exists"}
        assert not self.lingering and not self.terminating, "the pods of the earlier TrainJob would write to the checkpoint"
        self.created.append(body)
        self.add(body)
        return 201, body

    def add(self, body: dict[str, Any]) -> None:
        self.jobs[body["metadata"]["name"]] = {**body, "frames": list(self.frames)}

    def _advance(self, job: dict[str, Any]) -> dict[str, Any]:
        if len(job["frames"]) > 1 and "shown" in job:
            job["frames"].pop(0)
        job["shown"] = True
        found, _ = job["frames"][0]
        return {**{name: job[name] for name in ("metadata", "spec")}, "status": {"conditions": [found] if found else []}}

    def _pods(self, selector: str) -> list[dict[str, Any]]:
        label, _, name = selector.partition("=")
        if label == "pipeline/runid":
            return self.steps.get(name, [])
        if self.lingering:
            return [self.lingering.pop()]
        assert label == "jobset.sigs.k8s.io/jobset-name"
        return self.jobs[name]["frames"][0][1] if name in self.jobs else []


class _Handler(BaseHTTPRequestHandler):
    server: Kubernetes

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length) or "{}")
        if self.server.lost:
            self.server.lost -= 1
            if self.server.lost % 2:
                return  # closes the connection
            status, content = 503, {"message": "the server is currently unable to handle the request"}
        else:
            address = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            status, content = self.server.answer(self.command, address.path, query, body or {})
        self.send_response_only(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.end_headers()
        self.wfile.write(content.encode() if isinstance(content, str) else json.dumps(content).encode())

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing."""


@contextmanager
def serve() -> Iterator[Kubernetes]:
    double = Kubernetes()
    with in_background(double):
        yield double
