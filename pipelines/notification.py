"""The message about a run of a pipeline: its outcome, and what its stages have to say in the tag `headline` of their MLflow runs."""

import logging
import os
from typing import Any

from components.common.errors import UserError
from components.common.html.numbers import listing
from components.common.runs import tracking, webhook
from components.common.runs.delivery import run_page
from components.common.runs.lineage import ALARM, HEADLINE
from components.common.runs.provenance import KFP_VARIABLE

NOTIFIED = "notified"  # tag of the run of a pipeline: the outcome that a message was posted about
OUTCOMES = {"FINISHED": "succeeded", "FAILED": "failed", "KILLED": "cancelled"}  # by MLflow status

log = logging.getLogger(__name__)


def notify(client: Any, runs: dict[str, Any], final: str) -> None:
    """Posts the outcome, unless an earlier attempt of the step has.

    Args:
        client: of MLflow.
        runs: the MLflow runs of this run of the pipeline by id, as they were before they were closed.
        final: MLflow status of the pipeline.
    """
    parent = next((run for run in runs.values() if run.data.tags.get("stage") == tracking.PIPELINE), None)
    outcome = OUTCOMES[final]
    if parent and parent.data.tags.get(NOTIFIED) == outcome:
        return
    stages = [run for run in runs.values() if run is not parent]
    if webhook.post(_message(parent, stages, outcome)) and parent:
        try:
            with tracking.reachable():
                client.set_tag(parent.info.run_id, NOTIFIED, outcome)
        except UserError as error:  # another attempt would post again
            log.warning("end: %s", error)


def _message(parent: Any, stages: list[Any], outcome: str) -> webhook.Message:
    facts: dict[str, str] = {}
    failed = sorted({_stage(run) for run in stages if run.info.status != "FINISHED"})
    if outcome != "succeeded" and failed:
        facts["not finished"] = listing(failed)
    for run in sorted(stages, key=lambda run: run.info.start_time):
        if headline := run.data.tags.get(HEADLINE):
            known = facts.get(_stage(run))
            facts[_stage(run)] = f"{known}; {headline}" if known else headline
    alarm = any(run.data.tags.get(ALARM) == "yes" for run in stages)
    return webhook.Message(parent.info.run_name if parent else "pipeline", outcome, alarm, facts, _link(parent))


def _stage(run: Any) -> str:
    return str(run.data.tags.get("stage", run.info.run_name))


def _link(parent: Any) -> str:
    """Returns the page of the run in Kubeflow, or else in MLflow, whose address in a pod may not be that of its UI."""
    if address := os.environ.get(webhook.PAGE_VARIABLE):
        return address + os.environ.get(KFP_VARIABLE, "")
    return run_page(tracking.uri(), parent) if parent else ""
