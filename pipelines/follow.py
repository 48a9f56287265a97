"""The commands `status` and `cancel`, and `submit --wait`: the steps of a run, and what the log of a failed one says."""

import argparse
import contextlib
import os
import re
import sys
import time
from datetime import UTC, datetime

from components.common.errors import UserError
from components.common.runs.delivery import ui
from components.common.runs.signals import EXIT_CODE
from pipelines.cluster import MAIN, RUN_LABEL, SINGLE_USER_NAMESPACE, Cluster
from pipelines.progress import FINISHED, LEFT_OUT, Step, steps
from pipelines.server import FINAL_STATES, DeniedError, KubeflowServer, LostError, RunStatus, connect
from pipelines.settings import Settings

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 600.0  # how long following a run outlasts a server that does not answer
LOG_LINES = 20  # lines of the log of a failed step that are shown
EXPLAINED = 3  # failed steps whose log is shown
_FOREIGN = re.compile(r"""[IWEF]\d{4} |\[KFP Executor|time=.*argo=true|\{.*"argo":\s*true""")
"""Beginning of lines that Kubeflow's launcher and Argo's executor add to the log of a step."""
_EXIT_STATUS = re.compile(r"^[IWEF]\d{4} .*exit status (\d+)", re.MULTILINE)
_LINK = re.compile(r"MLflow run: (\S+)")  # in the log of `begin`, from pipelines/pipeline_run.py, whose imports take seconds


def status(options: argparse.Namespace, settings: Settings) -> int:
    """Runs the command `status`, which prints the steps of a run; 1 if the run failed."""
    server = connect(options, settings)
    view = _View(server, options.run)
    run, found = view.read()
    print(f"{run.name}: {run.state.lower()}{f' ({run.error})' if run.error else ''}")
    width = max((len(step.name) for step in found), default=0)
    for step in found:
        print(f"  {step.name:<{width}}  {_describe(step)}")
        if step.name == "launch" and step.state == "running":
            _print_nodes(server, run)
    _explain(server, run, found)
    return 1 if run.state in ("FAILED", "CANCELED") else 0


def cancel(options: argparse.Namespace, settings: Settings) -> int:
    """Runs the command `cancel`."""
    server = connect(options, settings)
    run, found = _View(server, options.run).read()
    if run.state in FINAL_STATES:
        print(f"run {options.run} has already ended: {run.state}")
        return 0
    server.terminate(options.run)
    print(f"run {options.run} is being cancelled")
    if any(step.name == "launch" and step.attempts for step in found):
        _delete_trainjobs(server, run)
    return 0


def _print_nodes(server: KubeflowServer, run: RunStatus) -> None:
    """Prints where the nodes of a pretraining on several nodes stand."""
    try:
        jobs = Cluster(server.namespace).trainjobs(run.identity)
    except UserError as error:
        print(f"    its nodes: `{_kubectl(server)} get trainjobs,pods -l {RUN_LABEL}={run.identity}` ({error})")
        return
    for name, found in jobs.items():
        for node in found:
            print(f"    {name}: node {node.number} {node.state}")


def _delete_trainjobs(server: KubeflowServer, run: RunStatus) -> None:
    """Deletes the TrainJobs of a run, since Kubeflow gives a cancelled step no chance to do so."""
    try:
        cluster = Cluster(server.namespace)
        for name in cluster.trainjobs(run.identity):
            cluster.delete_trainjob(name)
            print(f"TrainJob {name} is deleted")
    except UserError as error:
        remedy = f"{_kubectl(server)} delete trainjobs -l {RUN_LABEL}={run.identity}"
        raise UserError(f"{error}; its TrainJob continues, delete it: {remedy}") from None


def _kubectl(server: KubeflowServer) -> str:
    return f"kubectl -n {server.namespace or SINGLE_USER_NAMESPACE}"


def follow(server: KubeflowServer, identity: str) -> int:
    """Prints the progress of a run until it ends, and returns the exit code; Ctrl-C ends only this command."""
    view, shown = _View(server, identity), dict[str, str]()
    continues = f"the run continues, see `python -m pipelines status {identity}`"
    lost_since: float | None = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                run, found = view.read()
            except (LostError, DeniedError) as error:  # a token or a cookie has expired
                lost_since = lost_since or time.monotonic()
                if isinstance(error, DeniedError) or time.monotonic() - lost_since > PATIENCE_SECONDS:
                    raise UserError(f"{error}; {continues}") from None
            else:
                lost_since = None
                shown = _print_changes(found, shown)
                if run.state in FINAL_STATES:
                    return _print_outcome(server, run, found)
            time.sleep(POLL_SECONDS)
    print(continues, file=sys.stderr)
    return EXIT_CODE


class _View:
    """A run and its steps; the package that it came from is read once."""

    def __init__(self, server: KubeflowServer, identity: str):
        self._server, self._identity = server, identity
        self._package: dict[str, object] | None = None

    def read(self) -> tuple[RunStatus, list[Step]]:
        run = self._server.run(self._identity)
        self._package = self._package or self._server.package(run)
        found = steps(self._package, run.nodes, datetime.now(UTC), run.state in FINAL_STATES) if self._package else []
        return run, found


def _print_changes(found: list[Step], shown: dict[str, str]) -> dict[str, str]:
    """Prints each step whose state has changed, with the number of finished steps; returns the states by step."""
    states = {step.name: f"{step.state} {step.attempts}" for step in found}
    done = sum(step.state in FINISHED for step in found)
    for step in found:
        if step.state != LEFT_OUT and shown.get(step.name, "waiting 0") != states[step.name]:
            print(f"{time.strftime('%H:%M:%S')} [{done}/{len(found)}] {step.name}: {_describe(step)}", flush=True)
    return states


def _describe(step: Step) -> str:
    attempt = f", attempt {step.attempts}" if step.attempts > 1 else ""
    return f"{step.state}{attempt}{f', {step.minutes:.1f} min' if step.minutes is not None else ''}"


def _print_outcome(server: KubeflowServer, run: RunStatus, found: list[Step]) -> int:
    failed = ", ".join(step.name for step in found if step.state == "failed")
    where = f" in {failed}" if failed else ""
    print(f"run {run.identity}: {run.state.lower()}{where}{f' ({run.error})' if run.error else ''}", flush=True)
    _explain(server, run, found)
    return 0 if run.state == "SUCCEEDED" else 1


def _explain(server: KubeflowServer, run: RunStatus, found: list[Step]) -> None:
    """Prints the end of the logs of failed steps, and where MLflow shows the run."""
    failed = [step for step in found if step.state == "failed" and run.state != "CANCELED"]
    for step in failed[:EXPLAINED]:
        log = _log(server, run, step)
        print(f"{step.name}:" if log else f"{step.name}: see `{_kubectl(server)} logs {step.pod} -c {MAIN}`")
        for line in last_lines(log):
            print(f"  {line}")
    for begin in [step for step in found if step.name == "begin" and step.pod]:
        link = _LINK.search(_log(server, run, begin))
        print(f"MLflow: {_reachable(link[1]) if link else f'the runs with the tag kfp.run_id = {run.identity}'}")


def _log(server: KubeflowServer, run: RunStatus, step: Step) -> str:
    """Returns the log of the last attempt of a step, from Kubeflow or else from Kubernetes; empty if it cannot be had."""
    log = server.log(run.identity, step.pod)
    if log is None:
        with contextlib.suppress(UserError):  # no kubeconfig, no permission, or the pod is gone
            log = Cluster(server.namespace).log(step.pod)
    return log or ""


def last_lines(log: str) -> list[str]:
    """Returns the end of what a step itself has logged; its last line, which is its error message, if it ended with exit code 2."""
    own = [line for line in log.splitlines() if line.strip() and not _FOREIGN.match(line)]
    return own[-1:] if _EXIT_STATUS.findall(log)[-1:] == ["2"] else own[-LOG_LINES:]


def _reachable(link: str) -> str:
    """Returns the link with the address of MLflow that this machine is configured for, if it is: pods may know it by another name."""
    address = ui(os.environ.get("MLFLOW_TRACKING_URI", ""))
    return address + link[link.index("/#/") :] if address and "/#/" in link else link
