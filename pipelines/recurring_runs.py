"""The recurring runs of Kubeflow Pipelines: runs that its controller starts at the times of a cron expression."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import kfp_server_api as api

from pipelines.server import KubeflowServer, Submission

PAGE = 100  # entries of a list that are asked for at a time


class Schedule(NamedTuple):
    """A recurring run."""

    name: str
    identity: str
    trigger: str  # cron expression of six fields, or an interval
    enabled: bool
    last: tuple[datetime, str, str] | None  # start, state and id of its last run, if that is among the last PAGE runs of the experiment


class RecurringRuns:
    """Those of an experiment, which need not exist."""

    def __init__(self, server: KubeflowServer, experiment: str):
        self._server, self._experiment = server, experiment
        self._recurring, self._runs = api.RecurringRunServiceApi(server.client), api.RunServiceApi(server.client)

    def create(self, submission: Submission, package: Path, cron: str) -> str:
        """Uploads a package and schedules it; returns the id.

        No two of its runs are active at a time, since the second would do what the first is doing. After a pause or an outage, one run
        makes up for all that were missed, since each of them reads everything that is there.
        """
        recurring = api.V2beta1RecurringRun(
            **self._server.upload(submission, package),
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
            mode=api.RecurringRunMode.ENABLE,
            max_concurrency="1",
            no_catchup=True,
        )
        return str(self._server.call(self._recurring.recurring_run_service_create_recurring_run, recurring).recurring_run_id)

    def schedules(self, name: str | None = None) -> list[Schedule]:
        """Lists all schedules, or those of a name: several, if the replacement of one was interrupted."""
        self._server.check()
        experiment = self._server.find_experiment(self._experiment)
        if not experiment:
            return []
        latest = {"experiment_id": experiment, "sort_by": "created_at desc", "page_size": PAGE}
        runs = self._server.call(self._runs.run_service_list_runs, **latest).runs or []
        last = {run.recurring_run_id: (run.created_at, run.state or "PENDING", run.run_id) for run in reversed(runs)}
        listed = (_schedule(each, last.get(each.recurring_run_id)) for each in self._pages(experiment))
        return sorted(each for each in listed if name in (None, each.name))

    def enable(self, schedule: Schedule) -> None:
        """Resumes a schedule."""
        self._server.call(self._recurring.recurring_run_service_enable_recurring_run, schedule.identity)

    def disable(self, schedule: Schedule) -> None:
        """Pauses a schedule."""
        self._server.call(self._recurring.recurring_run_service_disable_recurring_run, schedule.identity)

    def delete(self, schedule: Schedule) -> None:
        """Deletes a schedule; its runs stay."""
        self._server.call(self._recurring.recurring_run_service_delete_recurring_run, schedule.identity)

    def _pages(self, experiment: str) -> Iterator[api.V2beta1RecurringRun]:
        token: str | None = ""
        while token is not None:
            asked = {"experiment_id": experiment, "page_size": PAGE, "page_token": token}
            page = self._server.call(self._recurring.recurring_run_service_list_recurring_runs, **asked)
            yield from page.recurring_runs or []
            token = page.next_page_token or None


def _schedule(recurring: api.V2beta1RecurringRun, last: tuple[datetime, str, str] | None) -> Schedule:
    cron, periodic = recurring.trigger.cron_schedule, recurring.trigger.periodic_schedule
    trigger = cron.cron if cron else f"every {periodic.interval_second} s"
    return Schedule(recurring.display_name, recurring.recurring_run_id, trigger, recurring.status == "ENABLED", last)
