"""`python -m pipelines compile | local | submit | status | cancel`; NAME is training, smoke or study."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from components.common.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 2 the user's mistake or a server's refusal, 1 the run failed."""
    options = _parser().parse_args(arguments)
    try:
        return int(COMMANDS[options.command](options))
    except UserError as error:
        print(f"{options.command}: {error}", file=sys.stderr)
        return 2


def _compile(options: argparse.Namespace) -> int:
    from components import params
    from pipelines import packages, settings

    out = Path(options.out)
    if out.suffix != ".yaml":
        raise UserError(f"--out {out}: must end in .yaml")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist")
    packages.compile_to(out, options.name, settings.load(options.settings), params.load(options.params, options.set))
    return 0


def _local(options: argparse.Namespace) -> int:
    from pipelines import local

    return local.run(options)


def _submit(options: argparse.Namespace) -> int:
    from pipelines import submission

    return submission.submit(options)


def _status(options: argparse.Namespace) -> int:
    from pipelines import submission

    return submission.status(options)


def _cancel(options: argparse.Namespace) -> int:
    from pipelines import submission

    return submission.cancel(options)


COMMANDS = {"compile": _compile, "local": _local, "submit": _submit, "status": _status, "cancel": _cancel}


def _parser() -> argparse.ArgumentParser:
    from pipelines.packages import PIPELINES
    from pipelines.settings import EXAMPLE

    common = _Parser(add_help=False)
    common.add_argument(
        "--settings", default=EXAMPLE, metavar="FILE", help="of the cluster (default: the example, pipelines/settings.yaml)"
    )
    pipeline = _Parser(add_help=False, parents=[common])
    pipeline.add_argument("name", choices=sorted(PIPELINES), metavar="NAME", help=", ".join(sorted(PIPELINES)))
    pipeline.add_argument("--params", default="params.yaml", metavar="FILE", help="parameters of the stages (default: params.yaml)")
    pipeline.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a parameter")
    server = _Parser(add_help=False)
    server.add_argument("--host", metavar="URL", help="address of Kubeflow Pipelines (default: from the settings)")
    server.add_argument("--namespace", metavar="N", help="where the run's pods are (default: from the settings)")

    parser = _Parser(prog="python -m pipelines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compiling = commands.add_parser("compile", parents=[pipeline], help="write the package that a cluster runs")
    compiling.add_argument("--out", required=True, metavar="FILE", help="a .yaml file")
    local = commands.add_parser("local", parents=[pipeline], help="run a pipeline here, each step in a process or a container of its own")
    local.add_argument(
        "--runner", default="subprocess", choices=("subprocess", "docker"), help="docker: in the images (default: subprocess)"
    )
    local.add_argument("--raw", default="data", metavar="PATH", help="raw files (default: data)")
    local.add_argument("--out", default="artifacts/pipeline", metavar="PATH", help="folder of all outputs (default: artifacts/pipeline)")
    submit = commands.add_parser("submit", parents=[pipeline, server], help="run a pipeline on the cluster")
    submit.add_argument("--raw", metavar="URI", help="raw files: s3://BUCKET/PREFIX, or dvc:REVISION for data.dvc at that commit")
    submit.add_argument("--out", metavar="URI", help="prefix of all outputs (default: from the settings)")
    submit.add_argument("--experiment", metavar="E", help="what the run is listed under (default: from the settings)")
    submit.add_argument("--wait", action="store_true", help="follow the run to its end")
    submit.add_argument("--dry-run", action="store_true", help="show what would be sent, and send nothing")
    for name, text in (("status", "show where a run is"), ("cancel", "stop a run")):
        command = commands.add_parser(name, parents=[common, server], help=text)
        command.add_argument("run", metavar="RUN_ID", help="as submit printed it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
