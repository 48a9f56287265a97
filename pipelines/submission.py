"""The command `submit`: a pipeline on the cluster."""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from components.common.errors import UserError
from components.common.runs import storage
from components.common.runs.provenance import git_state
from components.params import Params
from pipelines import data_version, packages, parameters
from pipelines.follow import follow
from pipelines.resources import gpus
from pipelines.server import KubeflowServer, Submission, connect
from pipelines.settings import Settings, commit


def submit(options: argparse.Namespace, settings: Settings, params: Params) -> int:
    """Runs the command `submit`."""
    server = connect(options, settings)
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    with prepared(server, options, settings, params, f"{options.name} {commit()[:12]} {now}") as (submission, package):
        if options.dry_run:
            print_submission(submission, gpus=gpus(options.name, settings, params))
            return 0
        identity = server.start(submission, package)
    print(f"run {identity}\n{server.link(identity)}", flush=True)
    return follow(server, identity) if options.wait else 0


@contextmanager
def prepared(
    server: KubeflowServer, options: argparse.Namespace, settings: Settings, params: Params, name: str
) -> Iterator[tuple[Submission, Path]]:
    """Checks what was given and compiles the package; yields what is to be sent under a name, and the package.

    Raises:
        UserError: a location is missing, or the cluster cannot read it.
    """
    if options.start and not storage.is_s3(options.start):
        raise UserError(f"--start {options.start}: must be an s3:// URI, which the cluster can read")
    raw, md5 = _raw(options, settings)
    arguments = parameters.arguments(options.name, params, raw, options.out or settings.root, md5, options.start, options.model)
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch, f"{options.name}.yaml")
        packages.compile_to(package, options.name, settings, params)
        dirty = "-dirty" if git_state()["dirty"] else ""
        yield (
            Submission(
                host=server.host,
                namespace=server.namespace,
                experiment=options.experiment or settings.server.experiment,
                pipeline=f"cxr-{options.name}",
                # Other settings give another package at the same commit.
                version=f"{commit()}{dirty}-{storage.digest_file(package)[:8]}",
                run=name,
                service_account=settings.service_account,
                parameters=arguments,
            ),
            package,
        )
    if dirty and not options.dry_run:
        print("warning: the working tree has uncommitted changes, which images named by the commit do not contain")


def print_submission(submission: Submission, **more: object) -> None:
    """Prints what would be sent."""
    print(yaml.safe_dump({**submission._asdict(), **more}, sort_keys=False, allow_unicode=True), end="")


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
