"""The nodes of a TrainJob, which are pods: where each stands, what it waits for, and what it logs."""

import json
from datetime import UTC, datetime
from typing import Any, NamedTuple

JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"  # of all pods of a TrainJob; the value is its name
NUMBER_LABEL = "batch.kubernetes.io/job-completion-index"
CONTAINER = "node"
WITHOUT_SIDECAR = {"sidecar.istio.io/inject": "false"}
"""Label of pods without a sidecar of Istio, which injects one in the namespaces of profiles; it would outlive the work."""
STARTING = ("ContainerCreating", "PodInitializing")  # reasons to wait that pass by themselves


class Node(NamedTuple):
    """A pod of a TrainJob."""

    pod: str
    number: int
    state: str  # in words
    restarts: int  # of its container
    exit_code: int | None  # of the last process that has ended


def node(pod: Any) -> Node:
    """Reads what is of interest in a V1Pod."""
    statuses = [status for status in pod.status.container_statuses or [] if status.name == CONTAINER]
    ended = [end for status in statuses for end in (status.state.terminated, status.last_state.terminated) if end]
    restarts = sum(status.restart_count for status in statuses)
    number = int((pod.metadata.labels or {}).get(NUMBER_LABEL, 0))
    return Node(pod.metadata.name, number, _state(pod, statuses, ended), restarts, ended[0].exit_code if ended else None)


def _state(pod: Any, statuses: list[Any], ended: list[Any]) -> str:
    if pod.metadata.deletion_timestamp:
        return "is being removed"
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"waits for a place: {condition.message or condition.reason}"
    last = f", {ended[0].reason or 'exit code'} ({ended[0].exit_code})" if ended else ""
    for status in statuses:
        waiting = status.state.waiting
        if waiting and waiting.reason not in STARTING:
            return f"waits: {waiting.reason}{f', {waiting.message}' if waiting.message else ''}{last}"
        if status.state.running:
            return f"runs{f', restarted after{last[1:]}' if status.restart_count else ''}"
        if status.state.terminated:
            return f"has ended{last}"
    return "starts" if pod.status.phase == "Pending" else str(pod.status.phase).lower()


def message(error: Any) -> str:
    """Returns what the API of Kubernetes says in a refusal (an ApiException), on one line; the words of the status if it says nothing."""
    try:
        return " ".join(str(json.loads(error.body)["message"]).split())[:300]
    except (ValueError, TypeError, KeyError):
        return str(error.reason)


class Position(NamedTuple):
    """How far the log of a pod was read."""

    stamp: str = ""  # time of the last line; Kubernetes writes all of them with the same number of digits
    read: datetime | None = None
    restarts: int = 0

    def seconds(self) -> dict[str, int]:
        """Returns the argument that leaves out what was read long ago; the margin is for clocks and slow answers."""
        return {"since_seconds": int((datetime.now(UTC) - self.read).total_seconds()) + 60} if self.read else {}


def new_lines(text: str, position: Position) -> tuple[list[str], str]:
    """Returns the lines of a log with timestamps that come after a position, without their timestamps, and the time of the last."""
    lines, stamp = [], position.stamp
    for line in text.splitlines():
        time, _, content = line.partition(" ")
        if time > position.stamp:
            lines.append(content)
            stamp = time
    return lines, stamp
