"""The command `schedule`: runs of a pipeline at the times of a cron expression, by Kubeflow's recurring runs.

The package and its parameters are those of the day on which the schedule was made. What a run reads is what lies under `raw` when it
runs: `begin` is never cached, and the digest of its listing is part of the names of all outputs (components/common/runs/step.py). Hence
runs over the same files find the outputs of the first in the cache, and runs over others write to other folders.
"""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime

from components.common.errors import UserError
from components.params import Params
from pipelines.cron import Cron
from pipelines.data_version import PREFIX
from pipelines.recurring_runs import RecurringRuns, Schedule
from pipelines.resources import gpus
from pipelines.server import connect
from pipelines.settings import Settings
from pipelines.submission import prepared, print_submission


def create(options: argparse.Namespace, settings: Settings, params: Params) -> int:
    """Runs the command `schedule NAME`."""
    cron = Cron(options.cron)
    if (options.raw or "").startswith(PREFIX):
        raise UserError(f"--raw {options.raw}: never changes, so that every run would do the same; give an s3:// URI or use submit")
    server = connect(options, settings)
    with prepared(server, options, settings, params, options.schedule) as (submission, package):
        if options.dry_run:
            print_submission(submission, cron=cron.kubeflow, gpus=gpus(options.name, settings, params))
            return 0
        runs = RecurringRuns(server, submission.experiment)
        earlier = runs.schedules(options.schedule)
        if earlier and not options.replace:
            raise UserError(f"--name {options.schedule}: is a schedule of this experiment; give --replace, or another --name")
        identity = runs.create(submission, package, cron.kubeflow)
        for schedule in earlier:  # last, so that a failure leaves one of them
            runs.delete(schedule)
    print(f"schedule {options.schedule} ({identity}), next run {_next(cron)}")
    return 0


def show(options: argparse.Namespace, settings: Settings) -> int:
    """Runs the command `schedule list`."""
    runs, experiment = _open(options, settings)
    found = runs.schedules()
    for schedule in found:
        print(f"{schedule.name}: {_describe(schedule)}")
    if not found:
        print(f"the experiment {experiment} has no schedules")
    return 0


def pause(options: argparse.Namespace, settings: Settings) -> int:
    """Runs the command `schedule pause`."""
    return _change(options, settings, RecurringRuns.disable, "is paused; a run that has begun continues")


def resume(options: argparse.Namespace, settings: Settings) -> int:
    """Runs the command `schedule resume`."""
    return _change(options, settings, RecurringRuns.enable, "is resumed; if it has missed a time, one run starts at once")


def remove(options: argparse.Namespace, settings: Settings) -> int:
    """Runs the command `schedule remove`."""
    return _change(options, settings, RecurringRuns.delete, "is removed; a run that has begun continues")


def _change(options: argparse.Namespace, settings: Settings, change: Callable[[RecurringRuns, Schedule], None], done: str) -> int:
    runs, experiment = _open(options, settings)
    found = runs.schedules(options.schedule)
    if not found:
        raise UserError(f"{options.schedule}: is no schedule of the experiment {experiment}; see `schedule list`, or give --experiment")
    for schedule in found:
        change(runs, schedule)
    print(f"schedule {options.schedule} {done}")
    return 0


def _open(options: argparse.Namespace, settings: Settings) -> tuple[RecurringRuns, str]:
    experiment = options.experiment or settings.server.experiment
    return RecurringRuns(connect(options, settings), experiment), experiment


def _describe(schedule: Schedule) -> str:
    text = schedule.trigger.removeprefix("0 ")
    try:
        following = f", next run {_next(Cron(text))}"
    except UserError:  # made by other means, with seconds or as an interval
        text, following = schedule.trigger, ""
    last = ""
    if schedule.last:
        started, state, identity = schedule.last
        last = f"; last run {started:%Y-%m-%d %H:%M} {state.lower()}, {identity}"
    return f"{text}{following if schedule.enabled else ', paused'}{last}"


def _next(cron: Cron) -> str:
    return f"{cron.next(datetime.now(UTC)):%Y-%m-%d %H:%M} UTC"
