"""The steps of a run as its pipeline defines them, found among the nodes of the workflow that Kubeflow lists.

Kubeflow runs a pipeline as a workflow of Argo and lists the nodes of that workflow: drivers, executors, attempts, iterations, conditions.
The id of a node ends in the FNV-1a hash (32 bits) of its path, such as `smoke-h7sx5(0).root(0).exit-handler-1(0).merge(0).executor(0)`, and
each node lists the ids of those below and after it. Hence the pipeline spec leads to the steps, their attempts and their pods.
"""

from collections.abc import Iterator
from datetime import datetime
from graphlib import TopologicalSorter
from itertools import count, takewhile
from typing import Any, NamedTuple

WAITING, LEFT_OUT, CACHED = "waiting", "left out", "cached"
FINISHED = ("succeeded", CACHED, "failed", "skipped", LEFT_OUT)


class Node(NamedTuple):
    """A node of the workflow."""

    name: str
    state: str  # PENDING, RUNNING, SUCCEEDED, FAILED or SKIPPED; empty if Argo has left the node out
    start: datetime | None
    end: datetime | None
    next: frozenset[str]  # ids of the nodes below and after it


class Step(NamedTuple):
    """A step of the pipeline, or one iteration of it."""

    name: str  # such as `merge`, `register-detect` or `preprocess 1/2`
    state: str  # waiting, starting, pending (for a node or an image), running, or one of FINISHED
    attempts: int = 0
    minutes: float | None = None  # None before it begins, and if nothing was done
    pod: str = ""  # pod of the last attempt; of the driver, if that failed


def steps(spec: dict[str, Any], nodes: list[Node], now: datetime, ended: bool) -> list[Step]:
    """Lists the steps of a run, in the order in which they can run.

    Args:
        spec: content of the package: `pipeline_spec` and `platform_spec`.
        nodes: the nodes of the run, empty before it starts.
        now: the present time.
        ended: whether the run has ended, so that what has not begun is left out.
    """
    return list(_Reader(spec, _Workflow(nodes), now, LEFT_OUT if ended else WAITING).read())


class _Workflow:
    """The nodes of a workflow, by path."""

    def __init__(self, nodes: list[Node]):
        self.ids = {identity for node in nodes for identity in node.next}
        self.name = next(iter(self.ids), "").rpartition("-")[0]
        self._named: dict[str, list[Node]] = {}
        for node in nodes:
            self._named.setdefault(node.name, []).append(node)

    def id(self, path: str) -> str:
        return f"{self.name}-{_fnv1a(path)}"

    def exists(self, path: str) -> bool:
        return path == self.name or self.id(path) in self.ids

    def attempts(self, path: str) -> list[str]:
        """Returns the paths of the attempts of a node; its own if the configuration of Argo has none for it."""
        numbered = list(takewhile(self.exists, (f"{path}({number})" for number in count())))
        return numbered or [path] * self.exists(path)

    def last(self, path: str) -> str:
        return self.attempts(path)[-1] if self.exists(path) else path

    def node(self, path: str) -> Node | None:
        """Returns a node. In a loop, several have one name: then it is the one that lists its attempts."""
        named = self._named.get(path.rpartition(".")[2], []) if self.exists(path) else []
        below = {self.id(each) for each in (*self.attempts(path), f"{path}.executor")}
        owners = [node for node in named if node.next & below] if len(named) > 1 else named
        return next(iter(owners), next((node for node in named if not node.next), None))

    def is_pending(self, attempt: str) -> bool:
        """Whether the pod of an attempt waits, as far as the pods of steps that run at the same time do not make this ambiguous."""
        states = {node.state for node in self._named.get(attempt.rpartition(".")[2], []) if not node.end or node.state == "PENDING"}
        return states == {"PENDING"}


class _Reader(NamedTuple):
    """Goes through the pipeline spec and looks up each step in the workflow."""

    spec: dict[str, Any]
    workflow: _Workflow
    now: datetime
    absent: str  # state of steps without a node

    def read(self) -> Iterator[Step]:
        root = self.workflow.last(f"{self.workflow.last(self.workflow.name)}.root")
        return self._dag(self.spec["pipeline_spec"]["root"]["dag"], root, "")

    def _dag(self, dag: dict[str, Any], scope: str, number: str) -> Iterator[Step]:
        """Yields the steps of a DAG whose tasks lie below the path `scope`; `number` is that of the iteration, if it is one of a loop."""
        tasks = dag["tasks"]
        for name in TopologicalSorter({name: task.get("dependentTasks", []) for name, task in tasks.items()}).static_order():
            task, path = tasks[name], f"{scope}.{name}"
            if "strategy" in task.get("triggerPolicy", {}):  # a hook on the exit of the task that it depends on
                hook = f"{scope}.{task['dependentTasks'][0]}.onExit"
                path = f"{self.workflow.last(hook)}.{name}"
            inner = self._component(task).get("dag")
            if not inner:
                yield self._step(f"{task['taskInfo']['name']}{number}", task, path)
            elif "parameterIterator" in task:
                yield from self._loop(inner, self.workflow.last(path))
            else:
                node = self.workflow.node(path)
                reader = self._replace(absent="skipped") if node and node.state == "SKIPPED" else self
                yield from reader._dag(inner, self.workflow.last(path), number)

    def _loop(self, dag: dict[str, Any], path: str) -> Iterator[Step]:
        items = list(takewhile(self.workflow.exists, (f"{path}.iteration-iterations({number}:{number})" for number in count())))
        for number, item in enumerate(items or [path], 1):
            scope = self.workflow.last(f"{self.workflow.last(item)}.iteration-item")
            yield from self._dag(dag, scope, f" {number}/{len(items)}" if items else "")

    def _step(self, name: str, task: dict[str, Any], path: str) -> Step:
        node, driver = self.workflow.node(path), self.workflow.node(f"{path}-driver")
        if driver and driver.state == "FAILED":
            return Step(
                name, "failed", 1, self._minutes(driver), self._pod(self.workflow.last(f"{path}-driver"), "system-container-driver")
            )
        if not node:
            return Step(name, "starting" if driver and driver.state and self.absent == WAITING else self.absent)
        if node.state in ("", "SKIPPED"):
            return Step(name, node.state.lower() or LEFT_OUT)
        retried = "retryPolicy" in task or self.workflow.exists(f"{self.workflow.name}(0)")
        attempts = [pod for attempt in self.workflow.attempts(path) for pod in self.workflow.attempts(f"{attempt}.executor")]
        attempts = [pod for pod in attempts if pod.endswith(")") or not retried]
        if not attempts:  # the executor of a cached step is skipped
            return Step(name, CACHED if node.state == "SUCCEEDED" else "starting")
        pending = node.state == "RUNNING" and self.workflow.is_pending(attempts[-1])
        pod = self._pod(attempts[-1], self._template(task))
        return Step(name, "pending" if pending else node.state.lower(), len(attempts), self._minutes(node), pod)

    def _component(self, task: dict[str, Any]) -> dict[str, Any]:
        component: dict[str, Any] = self.spec["pipeline_spec"]["components"][task["componentRef"]["name"]]
        return component

    def _template(self, task: dict[str, Any]) -> str:
        """Returns the name of the template that Kubeflow's compiler makes for the pods of a task."""
        kubernetes = self.spec.get("platform_spec", {}).get("platforms", {}).get("kubernetes", {})
        executors = kubernetes.get("deploymentSpec", {}).get("executors", {})
        metadata = executors.get(self._component(task)["executorLabel"], {}).get("podMetadata")
        counts = f"metadata-{len(metadata.get('annotations', {}))}-{len(metadata.get('labels', {}))}-" if metadata else ""
        return f"{counts}{'retry-' if 'retryPolicy' in task else ''}system-container-impl"

    def _pod(self, path: str, template: str) -> str:
        """Returns the name of a pod: workflow, template and hash."""
        return f"{self.workflow.name}-{template}-{_fnv1a(path)}"

    def _minutes(self, node: Node) -> float | None:
        return ((node.end or self.now) - node.start).total_seconds() / 60 if node.start else None


def _fnv1a(text: str) -> int:
    """Computes the FNV-1a hash of 32 bits."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value
