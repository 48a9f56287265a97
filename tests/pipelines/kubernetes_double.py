"""A double of the parts of the Kubernetes API, on loopback, that the kubeflow SDK needs for a TrainJob."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from kubeflow_trainer_api import models

NAMESPACE = "cxr"
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
JOBS = f"{TRAINER}/namespaces/{NAMESPACE}/trainjobs"
RUNTIME: dict[str, Any] = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": "auto"}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "pytorch/pytorch:2"}]}}},
                        },
                    }
                ]
            }
        },
    },
}


class Kubernetes(ThreadingHTTPServer):
    """The content of the server, and how TrainJobs end."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.conditions = ["", "Complete"]
        """Conditions of a job; each request advances it by one."""
        self.refuses = False

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        name = path.rpartition("/")[2]
        if method == "GET" and path == f"{TRAINER}/clustertrainingruntimes/torch-distributed":
            return 200, RUNTIME
        if method == "POST" and path == JOBS:
            return self._create(body)
        if method == "GET" and path.startswith(f"{JOBS}/") and name in self.jobs:
            return 200, self._advance(self.jobs[name])
        if method == "DELETE" and path.startswith(f"{JOBS}/") and name in self.jobs:
            self.deleted.append(name)
            return 200, self.jobs.pop(name)
        if method == "GET" and path == f"/api/v1/namespaces/{NAMESPACE}/pods":
            return 200, {"apiVersion": "v1", "kind": "PodList", "items": []}
        return 404, {"kind": "Status", "code": 404, "message": f"{path} not found"}

    def _create(self, body: dict[str, Any]) -> tuple[int, Any]:
        models.TrainerV1alpha1TrainJob.from_dict(body)  # raises if the schema is violated
        if self.refuses:
            return 403, {"kind": "Status", "code": 403, "message": "trainjobs is forbidden"}
        if body["metadata"]["name"] in self.jobs:
            return 409, {"kind": "Status", "code": 409, "message": "exists"}
        self.created.append(body)
        self.add(body)
        return 201, body

    def add(self, body: dict[str, Any]) -> None:
        metadata = {**body["metadata"], "namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.jobs[body["metadata"]["name"]] = {**body, "metadata": metadata, "left": list(self.conditions)}

    def _advance(self, job: dict[str, Any]) -> dict[str, Any]:
        kind = job["left"].pop(0) if len(job["left"]) > 1 else job["left"][0]
        now = "2026-01-01T00:00:00Z"
        conditions = [{"type": kind, "status": "True", "reason": kind, "message": "", "lastTransitionTime": now}] if kind else []
        return {**{name: value for name, value in job.items() if name != "left"}, "status": {"conditions": conditions}}


class _Handler(BaseHTTPRequestHandler):
    server: Kubernetes

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length) or "{}")
        status, content = self.server.answer(self.command, urlsplit(self.path).path, body or {})
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing."""


@contextmanager
def serve() -> Iterator[Kubernetes]:
    with Kubernetes() as double:
        thread = threading.Thread(target=double.serve_forever, daemon=True)
        thread.start()
        try:
            yield double
        finally:
            double.shutdown()
            thread.join()
