"""The commands `submit`, `status` and `cancel`: a pipeline on the cluster."""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import yaml

from components.common.errors import UserError
from components.common.runs import storage
from components.common.runs.provenance import git_state
from components.common.runs.signals import EXIT_CODE
from components.params import Params
from pipelines import data_version, packages, parameters
from pipelines.server import FINAL_STATES, KubeflowServer, LostError, RunStatus, Submission
from pipelines.settings import Settings, commit

POLL_SECONDS = 5.0
RUN_LABEL = "cxr/pipeline-run"
"""Label of the TrainJobs that components/pretrain/trainjob.py creates. Kubeflow gives a cancelled step no chance to delete them."""
PATIENCE_SECONDS = 600.0  # how long following a run outlasts a server that does not answer


def submit(options: argparse.Namespace, settings: Settings, params: Params) -> int:
    """Runs the command `submit`."""
    server = _server(options, settings)
    raw, md5 = _raw(options, settings)
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch, f"{options.name}.yaml")
        packages.compile_to(package, options.name, settings, params)
        dirty = "-dirty" if git_state()["dirty"] else ""
        submission = Submission(
            host=server.host,
            namespace=server.namespace,
            experiment=options.experiment or settings.server.experiment,
            pipeline=f"cxr-{options.name}",
            # Other settings give another package at the same commit.
            version=f"{commit()}{dirty}-{storage.digest_file(package)[:8]}",
            run=f"{options.name} {commit()[:12]} {time.strftime('%Y-%m-%d %H:%M', time.gmtime())}",
            service_account=settings.service_account,
            parameters=parameters.arguments(options.name, params, raw, options.out or settings.root, md5),
        )
        if options.dry_run:
            print(yaml.safe_dump(submission._asdict(), sort_keys=False, allow_unicode=True), end="")
            return 0
        identity = server.start(submission, package)
    if dirty:
        print("warning: the working tree has uncommitted changes, which images named by the commit do not contain")
    print(f"run {identity}\n{server.link(identity)}", flush=True)
    return _follow(server, identity) if options.wait else 0


def status(options: argparse.Namespace, settings: Settings) -> int:
    """Runs the command `status`, which prints the states of a run and its steps; 1 if the run failed."""
    run = _server(options, settings).run(options.run)
    print(f"{run.name}: {run.state.lower()}{f' ({run.error})' if run.error else ''}")
    for name, state in run.steps:
        print(f"  {name}: {state.lower()}")
    return 1 if run.state in ("FAILED", "CANCELED") else 0


def cancel(options: argparse.Namespace, settings: Settings) -> int:
    """Runs the command `cancel`."""
    server = _server(options, settings)
    state = server.run(options.run).state
    if state in FINAL_STATES:
        print(f"run {options.run} has already ended: {state}")
        return 0
    server.terminate(options.run)
    print(f"run {options.run} is being cancelled")
    print(f"if it pretrains on several nodes: kubectl delete trainjobs -l {RUN_LABEL}={options.run}")
    return 0


def _server(options: argparse.Namespace, settings: Settings) -> KubeflowServer:
    host = options.host or settings.server.host
    if not host:
        raise UserError("--host: is missing, and the settings have no server.host; give one of them")
    return KubeflowServer(host, options.namespace or settings.server.namespace)


def _raw(options: argparse.Namespace, settings: Settings) -> tuple[str | None, str]:
    """Returns the folder of the raw files, and its MD5 if DVC tracks it; a dry run copies nothing."""
    if options.name == "smoke":
        return None, ""
    raw = options.raw or settings.raw
    if not raw:
        raise UserError("--raw: is missing, and the settings have no raw; give one of them")
    if raw.startswith(data_version.PREFIX):
        version = data_version.resolve(raw.removeprefix(data_version.PREFIX))
        root = options.out or settings.root
        return version.folder(root) if options.dry_run else data_version.copy(version, root), version.md5
    if not storage.is_s3(raw):
        raise UserError(f"--raw {raw}: must be an s3:// URI, which the cluster can read, or {data_version.PREFIX}REVISION")
    return str(raw), ""


def _follow(server: KubeflowServer, identity: str) -> int:
    """Prints the progress of a run until it ends."""
    shown: dict[str, str] = {}
    lost_since: float | None = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                run = server.run(identity)
            except LostError as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > PATIENCE_SECONDS:
                    raise UserError(f"{error}; the run continues, see `python -m pipelines status {identity}`") from None
            else:
                lost_since = None
                shown = _print_progress(run, shown)
                if run.state in FINAL_STATES:
                    return _print_outcome(run)
            time.sleep(POLL_SECONDS)
    print(f"the run continues; see `python -m pipelines status {identity}`", file=sys.stderr)
    return EXIT_CODE


def _print_progress(run: RunStatus, shown: dict[str, str]) -> dict[str, str]:
    """Prints each step whose state has changed, with the number of finished steps; returns the states by step."""
    states = dict(run.steps)
    done = sum(state in FINAL_STATES for state in states.values())
    for name, state in states.items():
        if shown.get(name) != state:
            print(f"{time.strftime('%H:%M:%S')} [{done}/{len(states)}] {name}: {state.lower()}", flush=True)
    return states


def _print_outcome(run: RunStatus) -> int:
    failed = ", ".join(name for name, state in run.steps if state == "FAILED")
    where = f" in {failed}" if failed else ""
    print(f"run {run.identity}: {run.state.lower()}{where}{f' ({run.error})' if run.error else ''}", flush=True)
    return 0 if run.state == "SUCCEEDED" else 1
