"""The nodes that a real Kubeflow lists for a run, made from its pipeline spec: the workflow of Argo, in which every node is retried.

tests/pipelines/run_failed.json is the answer of a real server, which `test_progress.py` compares with these nodes.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter
from typing import Any

BEGIN = datetime(2026, 11, 29, 6, 18, 46, tzinfo=UTC)
OMITTED, SKIPPED, CACHED = "", "SKIPPED", "CACHED"

Outcome = tuple[str | None, list[str]]
"""State of a task, None before it begins, and the paths of the nodes that the next ones follow."""


def listing(spec: dict[str, Any], outcomes: dict[str, Any], name: str = "smoke-h7sx5", iterations: int = 2) -> list[dict[str, Any]]:
    """Returns `task_details` as GET runs/ID does.

    Args:
        spec: the pipeline spec, as in the package.
        outcomes: state of a task that does not succeed, by its name, in a loop with `#` and the iteration (from 0); or a pair of it and
            the number of attempts. The state CACHED is that of a step whose executor is skipped.
        name: name of the workflow.
        iterations: number of items of each loop.
    """
    return _Workflow(spec, outcomes, name, iterations).tasks()


class _Workflow:
    def __init__(self, spec: dict[str, Any], outcomes: dict[str, Any], name: str, iterations: int):
        self.spec, self.outcomes, self.name, self.iterations = spec, outcomes, name, iterations
        self.nodes: dict[str, dict[str, Any]] = {}
        self._retry(name, [], lambda attempt: self._nested("root", {"dag": spec["root"]["dag"]}, attempt, [attempt], "", []))

    def tasks(self) -> list[dict[str, Any]]:
        return [
            {**node, "child_tasks": [{"pod_name": self._id(path)} for path in sorted(node["child_tasks"])]} for node in self.nodes.values()
        ]

    def _id(self, path: str) -> str:
        digest = 2166136261
        for byte in path.encode():
            digest = ((digest ^ byte) * 16777619) % 2**32
        return path if path == self.name else f"{self.name}-{digest}"

    def _add(self, path: str, parents: Iterable[str], state: str | None = None) -> str:
        start = BEGIN + timedelta(seconds=30 * len(self.nodes))
        self.nodes[path] = {"display_name": _display_name(path), "start_time": start.isoformat(), "child_tasks": set()}
        for parent in parents:
            self.nodes[parent]["child_tasks"].add(path)
        self._close(path, state)
        return path

    def _close(self, path: str, state: str | None) -> None:
        if state:
            self.nodes[path]["state"] = state
        if state not in ("RUNNING", "PENDING", None):
            self.nodes[path]["end_time"] = (BEGIN + timedelta(seconds=30 * len(self.nodes))).isoformat()

    def _retry(self, path: str, parents: list[str], body: Callable[[str], Outcome]) -> Outcome:
        self._add(path, parents)
        attempt = self._add(f"{path}(0)", [path])
        state, outbound = body(attempt)
        for node in (path, attempt):
            self._close(node, state)
        return state, [attempt] if state == "FAILED" else outbound

    def _pod(self, path: str, parents: list[str], state: str = "SUCCEEDED", attempts: int = 1) -> Outcome:
        self._add(path, parents, "RUNNING" if state == "PENDING" else state)
        for number in range(attempts):
            last = self._add(f"{path}({number})", [path], state if number == attempts - 1 else "FAILED")
        self._close(path, state)
        return state, [last]

    def _nested(self, name: str, component: dict[str, Any], scope: str, parents: list[str], item: str, hooks: list[Any]) -> Outcome:
        """Adds the driver and the DAG of a component, and the hooks on its exit."""
        _, driver = self._pod(f"{scope}.{name}-driver", parents)
        path = f"{scope}.{name}"
        if self.outcomes.get(name) == SKIPPED:
            return SKIPPED, [self._add(path, driver, SKIPPED)]
        state, outbound = self._retry(path, driver, lambda attempt: self._dag(component["dag"], attempt, item))
        for hook, task in hooks if state in ("SUCCEEDED", "FAILED") else ():
            ended, _ = self._retry(f"{path}.onExit", [path], lambda attempt: self._leaf(hook, task, attempt, [attempt], ""))  # noqa: B023
            state = "FAILED" if ended == "FAILED" else state
        return state, outbound

    def _dag(self, dag: dict[str, Any], scope: str, item: str) -> Outcome:
        tasks = dag["tasks"]
        exits = {name: task for name, task in tasks.items() if "strategy" in task.get("triggerPolicy", {})}
        done: dict[str, Outcome] = {}
        for name in TopologicalSorter({name: task.get("dependentTasks", []) for name, task in tasks.items()}).static_order():
            if name not in exits:
                hooks = [(hook, task) for hook, task in exits.items() if name in task["dependentTasks"]]
                done[name] = self._task(
                    name, tasks[name], scope, [done[each] for each in tasks[name].get("dependentTasks", [])], item, hooks
                )
        states = {state for state, _ in done.values()}
        if not states <= {"SUCCEEDED", "FAILED", SKIPPED, OMITTED}:
            return "RUNNING", []
        last = done.keys() - {each for task in tasks.values() for each in task.get("dependentTasks", [])}
        ended = "FAILED" if "FAILED" in states else "SUCCEEDED"
        return ended, [path for name in sorted(last or done) for path in done[name][1]]

    def _task(self, name: str, task: dict[str, Any], scope: str, before: list[Outcome], item: str, hooks: list[Any]) -> Outcome:
        states = {state for state, _ in before}
        if not states <= {"SUCCEEDED", "FAILED", SKIPPED, OMITTED}:
            return None, []
        parents = [path for _, outbound in before for path in outbound] or [scope]
        component = self.spec["components"][task["componentRef"]["name"]]
        loop = "parameterIterator" in task
        if states & {"FAILED", OMITTED}:
            driver = parents if loop else [self._add(f"{scope}.{name}-driver", parents, OMITTED)]
            return OMITTED, [self._add(f"{scope}.{name}", driver, OMITTED)]
        if loop:
            return self._retry(f"{scope}.{name}", parents, lambda attempt: self._loop(component, attempt))
        if "dag" in component:
            return self._nested(name, component, scope, parents, item, hooks)
        return self._leaf(name, task, scope, parents, item)

    def _loop(self, component: dict[str, Any], scope: str) -> Outcome:
        _, driver = self._pod(f"{scope}.iteration-driver", [scope])
        group = self._add(f"{scope}.iteration-iterations", driver, "SUCCEEDED")
        done = []
        for number in range(self.iterations):
            path, item = f"{scope}.iteration-iterations({number}:{number})", f"#{number}"
            body = lambda attempt: self._nested("iteration-item", component, attempt, [attempt], item, [])  # noqa: B023, E731
            done.append(self._retry(path, [group], body))
        states = {state for state, _ in done}
        state = next((each for each in ("RUNNING", "FAILED") if each in states), "SUCCEEDED")
        return state, [path for _, outbound in done for path in outbound]

    def _leaf(self, name: str, task: dict[str, Any], scope: str, parents: list[str], item: str) -> Outcome:
        _, driver = self._pod(f"{scope}.{name}-driver", parents)
        outcome = self.outcomes.get(f"{name}{item}", "SUCCEEDED")
        state, attempts = outcome if isinstance(outcome, tuple) else (outcome, 1)

        def executor(attempt: str) -> Outcome:
            if state == CACHED:
                return "SUCCEEDED", [self._add(f"{attempt}.executor", [attempt], SKIPPED)]
            _, outbound = self._pod(f"{attempt}.executor", [attempt], state, attempts)
            return "RUNNING" if state == "PENDING" else state, outbound

        return self._retry(f"{scope}.{name}", driver, executor)


def _display_name(path: str) -> str:
    scope, _, name = path.rpartition(".")
    return f"{scope.rpartition('.')[2]}.{name}" if name.startswith("onExit") else name
