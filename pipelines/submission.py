"""`submit`, `status` and `cancel`: a pipeline on the cluster."""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from components.common.errors import UserError
from components.common.runs import storage
from components.common.runs.provenance import git_state
from components.common.runs.signals import EXIT_CODE
from components.params import load
from pipelines import data_version, packages
from pipelines import settings as cluster
from pipelines.server import FINAL_STATES, LostError, Run, Server
from pipelines.settings import Settings

POLL_SECONDS = 5.0
RUN_LABEL = "cxr/pipeline-run"
"""Of TrainJobs, by components/pretrain/trainjob.py. Kubeflow lets a cancelled step do nothing any more."""
PATIENCE_SECONDS = 600.0
"""For a server that is lost while a run is followed."""


class Submission(NamedTuple):
    """All that is sent."""

    host: str
    namespace: str | None
    experiment: str
    pipeline: str
    version: str
    run: str
    service_account: str | None
    parameters: dict[str, Any]


def submit(options: argparse.Namespace) -> int:
    """The command `submit`."""
    settings = cluster.load(options.settings)
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch, f"{options.name}.yaml")
        packages.compile_to(package, options.name, settings, load(options.params, options.set))
        submission = _prepare(options, settings, package)
        if options.dry_run:
            print(yaml.safe_dump(submission._asdict(), sort_keys=False, allow_unicode=True), end="")
            return 0
        server = Server(submission.host, submission.namespace)
        identity = _send(server, submission, package)
    if git_state()["dirty"]:
        print("there are uncommitted changes, which images named by the commit do not have")
    print(f"run {identity}\n{server.link(identity)}", flush=True)
    return _follow(server, identity) if options.wait else 0


def status(options: argparse.Namespace) -> int:
    """The command `status`: prints where a run is; 1 if it has failed."""
    run = _server(options).run(options.run)
    _show(run)
    return 1 if run.state in ("FAILED", "CANCELED") else 0


def cancel(options: argparse.Namespace) -> int:
    """The command `cancel`."""
    server = _server(options)
    run = server.run(options.run)
    if run.state in FINAL_STATES:
        print(f"run {options.run} has ended before: {run.state}")
        return 0
    server.terminate(options.run)
    print(f"run {options.run} is being cancelled")
    print(f"if it pretrains on several nodes: kubectl delete trainjobs -l {RUN_LABEL}={options.run}")
    return 0


def _server(options: argparse.Namespace) -> Server:
    settings = cluster.load(options.settings)
    return Server(_host(options, settings), options.namespace or settings.server.namespace)


def _host(options: argparse.Namespace, settings: Settings) -> str:
    host = options.host or settings.server.host
    if not host:
        raise UserError("--host: is missing, and the settings have no server.host")
    return str(host)


def _prepare(options: argparse.Namespace, settings: Settings, package: Path) -> Submission:
    raw, digest = _raw(options, settings)
    commit = cluster.commit()
    dirty = "-dirty" if git_state()["dirty"] else ""
    return Submission(
        host=_host(options, settings),
        namespace=options.namespace or settings.server.namespace,
        experiment=options.experiment or settings.server.experiment,
        pipeline=f"cxr-{options.name}",
        # Other settings are another package, of the same commit.
        version=f"{commit}{dirty}-{storage.digest_file(package)[:8]}",
        run=f"{options.name} {commit[:12]} {time.strftime('%Y-%m-%d %H:%M', time.gmtime())}",
        service_account=settings.service_account,
        parameters=packages.arguments(options.name, load(options.params, options.set), raw, options.out or settings.root, digest),
    )


def _raw(options: argparse.Namespace, settings: Settings) -> tuple[str | None, str]:
    """Folder of the raw files, and their digest if they are under DVC; a dry run copies nothing."""
    if options.name == "smoke":
        return None, ""
    raw = options.raw or settings.raw
    if not raw:
        raise UserError("--raw: is missing, and the settings have no raw")
    if raw.startswith(data_version.PREFIX):
        version = data_version.resolve(raw.removeprefix(data_version.PREFIX))
        root = options.out or settings.root
        place = storage.join(root, "raw", version.md5) if options.dry_run else data_version.materialise(version, root)
        return place, version.md5
    if not storage.is_s3(raw):
        raise UserError(f"--raw {raw}: must be an s3:// URI, which the cluster can read, or {data_version.PREFIX}REVISION")
    return str(raw), ""


def _send(server: Server, submission: Submission, package: Path) -> str:
    server.check()
    experiment = server.experiment(submission.experiment)
    version = server.upload(package, submission.pipeline, submission.version)
    return server.start(submission.run, experiment, version, submission.parameters, submission.service_account)


def _follow(server: Server, identity: str) -> int:
    """Shows how a run gets on, to its end."""
    shown: dict[str, str] = {}
    lost_since: float | None = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                run = server.run(identity)
            except LostError as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > PATIENCE_SECONDS:
                    raise UserError(f"{error}; the run goes on, see `python -m pipelines status {identity}`") from None
            else:
                lost_since = None
                shown = _progress(run, shown)
                if run.state in FINAL_STATES:
                    return _outcome(run)
            time.sleep(POLL_SECONDS)
    print(f"the run goes on; see `python -m pipelines status {identity}`", file=sys.stderr)
    return EXIT_CODE


def _progress(run: Run, shown: dict[str, str]) -> dict[str, str]:
    """Prints a line for each step that is in another state than before, with how many are done."""
    states = {task.name: task.state for task in run.tasks}
    done = sum(state in FINAL_STATES for state in states.values())
    for name, state in states.items():
        if shown.get(name) != state:
            print(f"{time.strftime('%H:%M:%S')} [{done}/{len(states)}] {name}: {state.lower()}", flush=True)
    return states


def _outcome(run: Run) -> int:
    failed = ", ".join(task.name for task in run.tasks if task.state == "FAILED")
    where = f" in {failed}" if failed else ""
    print(f"run {run.identity}: {run.state.lower()}{where}{f' ({run.error})' if run.error else ''}", flush=True)
    return 0 if run.state == "SUCCEEDED" else 1


def _show(run: Run) -> None:
    print(f"{run.name}: {run.state.lower()}{f' ({run.error})' if run.error else ''}")
    for task in run.tasks:
        print(f"  {task.name}: {task.state.lower()}")
