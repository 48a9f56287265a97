"""What outputs are needed for, according to MLflow and to the outputs themselves.

An output names its inputs by their SHA-256 and MLflow runs, in run.json and in the tags of its own run (components/common/runs/lineage.py).
Kept is, with all that it comes from, what is younger than the given age: outputs, unfinished work and runs; and, at any age, registered
versions, the references of their models, and open runs. Predictions of registered versions are kept without the images that they were made
from, and so is an output whose run MLflow does not have.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from mlflow.entities import LifecycleStage, Run, RunStatus, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from components.common.runs import tracking
from components.common.runs.lineage import needs
from pipelines.outputs import Found

_MODEL = ("input.model.sha256", "upstream.model.run_id")  # tags of a version that name the output of its head
REGISTERED = "registered.name"  # tag that `register` gives its run
OVERLAP_SECONDS = 600.0  # by how much the clocks of the machines that begin runs may differ
PAGE = 1000


class Root(NamedTuple):
    """Something that outputs are kept for."""

    reason: str  # why an output that it comes from is kept
    needs: set[str]


class Lineage:
    """Runs and registered versions of the MLflow server."""

    def __init__(self) -> None:
        """Raises UserError if the server cannot be reached, or does not show everything to this user."""
        self._client: Any = tracking.client()
        self._runs: dict[str, Run] = {}
        self._asked = 0.0
        self.update()

    def update(self) -> None:
        """Reads the registered versions, and what has changed since the last time: new runs, and those that were open."""
        since, self._asked = max(0.0, self._asked - OVERLAP_SECONDS), time.time()
        options = {"filter_string": f"attributes.start_time > {since * 1000:.0f}", "run_view_type": ViewType.ALL, "max_results": PAGE}
        with tracking.reachable():
            for run in self.open():
                self._runs[run.info.run_id] = self._client.get_run(run.info.run_id)
            experiments = [each.experiment_id for each in _pages(self._client.search_experiments, view_type=ViewType.ALL)]
            self._runs |= {run.info.run_id: run for run in _pages(self._client.search_runs, experiments, **options)}
            self.versions = self._read_versions()

    def knows(self, run_id: str | None) -> bool:
        """Whether the server has a run."""
        return run_id in self._runs

    def inputs(self, run_id: str) -> set[str]:
        """Returns what the tags of a run name as its inputs; nothing for other things than a run."""
        return needs(self._runs[run_id].data.tags) if run_id in self._runs else set()

    def open(self) -> list[Run]:
        """Lists the runs that have not ended and are not deleted."""
        runs = (run for run in self._runs.values() if run.info.lifecycle_stage == LifecycleStage.ACTIVE)
        return [run for run in runs if not RunStatus.is_terminated(RunStatus.from_string(run.info.status))]

    def roots(self, since: float) -> Iterator[Root]:
        """Yields registered versions, open runs, and runs that have begun or ended since a time."""
        yield from self.versions
        for run in self.open():
            yield Root(f"the open run {run.info.run_id} needs it", _named(run) | {run.data.tags.get("fingerprint", "")})
        for run in self._runs.values():
            last = max(run.info.start_time, run.info.end_time or 0) / 1000
            if last >= since:
                yield Root(f"the run {run.info.run_id} of {datetime.fromtimestamp(last, UTC):%Y-%m-%d} needs it", _named(run))

    def _read_versions(self) -> list[Root]:
        models = list(_pages(self._client.search_registered_models, max_results=PAGE))
        self._refuse_hidden({model.name for model in models})
        holders = {(model.name, str(number)): alias for model in models for alias, number in model.aliases.items()}
        versions = list(_pages(self._client.search_model_versions, max_results=PAGE))
        named = {each.run_id for each in versions} | {each.tags.get(name) for each in versions for name in _MODEL}
        self.models: set[str] = {*filter(None, named)}
        return [Root(f"{_name(each, holders)} needs it", self._of_version(each)) for each in versions]

    def _of_version(self, version: ModelVersion) -> set[str]:
        """Returns by what a version names where it comes from: runs, digests, and addresses, if it was registered from a folder."""
        run_id = version.run_id
        if not run_id and version.model_id:
            run_id = self._client.get_logged_model(version.model_id).source_run_id
        parts = (version.source or "").removeprefix("file://").split("/")
        folders = {"/".join(parts[:count]) for count in range(len(parts), 0, -1)}
        return {run_id or "", *folders, *needs(version.tags)}

    def _refuse_hidden(self, shown: set[str]) -> None:
        """Raises an error of MLflow if this user may not read a model that a run has registered: a server with a login leaves it out."""
        for name in {run.data.tags[REGISTERED] for run in self._runs.values() if REGISTERED in run.data.tags} - shown:
            try:
                self._client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise


def keep(found: list[Found], lineage: Lineage, since: float) -> dict[str, str]:
    """Returns why outputs must be kept, by path.

    Args:
        found: everything below the root.
        lineage: what MLflow knows.
        since: time before which an output must have been finished to be deleted.
    """
    providers: dict[str, list[Found]] = defaultdict(list)
    for each in found:
        for token in each.provides:
            providers[token].append(each)
    scored = [each for each in found if each.stage == "predict" and each.needs & lineage.models]
    known = lineage.models.union(*(each.provides for each in scored))
    young = [each for each in found if each.changed >= since and not each.begun]
    references = [each for each in found if each.stage == "reference" and each.needs & known]
    unknown = [each for each in found if not each.unfinished and not lineage.knows(each.run_id)]
    reasons = {each.path: each.keep for each in found if each.keep}
    for why, some in (
        ("younger", young),
        ("the reference of a registered model", references),
        (f"its run is not in {tracking.server_name()}, so that nothing is known of what comes from it", unknown),
    ):
        reasons |= {each.path: why for each in some if each.path not in reasons}
    seen: set[str] = {""}
    for root in (*lineage.roots(since), *(Root(f"{each.path} needs it", each.needs) for each in found if each.path in reasons)):
        waiting = root.needs - seen
        while waiting:
            token = waiting.pop()
            seen.add(token)
            for each in providers[token]:
                reasons.setdefault(each.path, root.reason)
                waiting |= each.needs - seen
            waiting |= lineage.inputs(token) - seen
    for each in scored:  # what they were made from is not needed
        reasons.setdefault(each.path, "what a registered model has scored, which it does not score again")
    return reasons


def _named(run: Run) -> set[str]:
    return {run.info.run_id, *needs(run.data.tags)}


def _name(version: ModelVersion, holders: dict[tuple[str, str], str]) -> str:
    alias = holders.get((version.name, str(version.version)))
    return f"{version.name} version {version.version}{f', {alias},' if alias else ''}"


def _pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """Yields the entries of all pages of an answer of MLflow."""
    token = None
    while True:
        page = search(*arguments, **options, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
