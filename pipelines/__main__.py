"""`python -m pipelines compile | local | doctor | submit | schedule | status | cancel | clean | serve`; NAME is a pipeline."""

import argparse
import pkgutil
import sys
from typing import Any, NoReturn

from components.common.errors import UserError
from components.params import load as load_params
from pipelines.parameters import PARAMETERS
from pipelines.settings import EXAMPLE
from pipelines.settings import load as load_settings

COMMANDS = {
    "compile": "pipelines.packages:compile_command",
    "local": "pipelines.local:run",
    "submit": "pipelines.submission:submit",
    "status": "pipelines.follow:status",
    "doctor": "pipelines.doctor.command:run",
    "serve": "pipelines.serving:serve",
    "cancel": "pipelines.follow:cancel",
    "clean": "pipelines.clean:run",
    "schedule": "pipelines.schedules:create",
    "schedule list": "pipelines.schedules:show",
    "schedule pause": "pipelines.schedules:pause",
    "schedule resume": "pipelines.schedules:resume",
    "schedule remove": "pipelines.schedules:remove",
}
"""Function by command. Their modules import kfp, which takes seconds, while a mistake in a file is reported at once."""


class _Parser(argparse.ArgumentParser):
    """Reports a mistake on the command line in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 2 a mistake of the user or a refusal of a server, 1 the run failed."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings(options.settings)
        params = [load_params(options.params, options.set)] if "params" in options else []
        return int(pkgutil.resolve_name(COMMANDS[options.command])(options, settings, *params))
    except UserError as error:
        print(f"{options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{options.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--settings", default=EXAMPLE, metavar="FILE", help="settings of the cluster (default: pipelines/settings.yaml)")
    stages = _Parser(add_help=False, parents=[common])
    stages.add_argument("--params", default="params.yaml", metavar="FILE", help="parameters of the stages (default: params.yaml)")
    stages.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a parameter")
    pipeline = _Parser(add_help=False, parents=[stages])
    pipeline.add_argument("name", choices=sorted(PARAMETERS), metavar="NAME", help=", ".join(sorted(PARAMETERS)))
    model = "registered model of the pipeline scoring: models:/NAME@champion, or models:/NAME/VERSION"
    start = "starting point of pretraining: a checkpoint, a ResNet or an output folder of pretrain (default: random weights)"
    server = _Parser(add_help=False)
    server.add_argument("--host", metavar="URL", help="address of Kubeflow Pipelines (default: from the settings)")
    server.add_argument("--namespace", metavar="N", help="namespace of the run's pods (default: from the settings)")
    listed = _Parser(add_help=False, parents=[server])
    listed.add_argument("--experiment", metavar="E", help="experiment that lists the run or schedule (default: from the settings)")
    sent = _Parser(add_help=False, parents=[listed])
    sent.add_argument("--raw", metavar="URI", help="raw files: s3://BUCKET/PREFIX, or dvc:REVISION for data.dvc at that commit")
    sent.add_argument("--start", default="", metavar="URI", help=start)
    sent.add_argument("--model", default="", metavar="URI", help=model)
    sent.add_argument("--out", metavar="URI", help="prefix of all outputs (default: from the settings)")
    sent.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")

    parser = _Parser(prog="python -m pipelines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compiling = commands.add_parser("compile", parents=[pipeline], help="write the package that a cluster runs")
    compiling.add_argument("--out", required=True, metavar="FILE", help="a .yaml file")
    local = commands.add_parser("local", parents=[pipeline], help="run a pipeline on this machine, each step in a process or container")
    local.add_argument(
        "--runner", default="subprocess", choices=("subprocess", "docker"), help="docker: in the images (default: subprocess)"
    )
    local.add_argument("--raw", default="data", metavar="PATH", help="raw files (default: data)")
    local.add_argument("--start", default="", metavar="PATH", help=start)
    local.add_argument("--model", default="", metavar="URI", help=model)
    local.add_argument("--out", default="artifacts/pipeline", metavar="PATH", help="folder of all outputs (default: artifacts/pipeline)")
    submit = commands.add_parser("submit", parents=[pipeline, sent], help="run a pipeline on the cluster")
    submit.add_argument("--wait", action="store_true", help="follow the run until it ends")
    _add_schedule(commands, [stages, sent], [common, listed])
    commands.add_parser("doctor", parents=[stages, server], help="check what the cluster of a settings file lacks, with your rights")
    serving = commands.add_parser("serve", parents=[common], help="print manifests with which KServe serves a registered model")
    serving.add_argument("--model", required=True, metavar="URI", help="models:/NAME@champion or the like")
    serving.add_argument("--artifacts", metavar="URI", help="--artifacts-destination of the MLflow server, if it passes files on itself")
    for name, text in (("status", "show the state of a run"), ("cancel", "stop a run")):
        command = commands.add_parser(name, parents=[common, server], help=text)
        command.add_argument("run", metavar="RUN_ID", help="id that submit printed")
    clean = commands.add_parser("clean", parents=[common], help="delete outputs that no registered model and no newer run depends on")
    clean.add_argument("--older-than", required=True, metavar="AGE", help="days or weeks, such as 90d or 12w")
    clean.add_argument("--root", metavar="PATH", help="folder or prefix of all outputs (default: from the settings)")
    clean.add_argument("--dry-run", action="store_true", help="list what would be deleted, and why the rest is kept; delete nothing")
    return parser


def _add_schedule(commands: Any, sent: list[argparse.ArgumentParser], listed: list[argparse.ArgumentParser]) -> None:
    """Adds `schedule NAME` for each pipeline, and `schedule list | pause | resume | remove`."""
    schedule = commands.add_parser("schedule", help="run a pipeline on the cluster again and again, or list, pause, resume, remove that")
    actions = schedule.add_subparsers(required=True, metavar="NAME | list | pause | resume | remove")
    for name in sorted(PARAMETERS):
        action = actions.add_parser(name, parents=sent, help=f"schedule {name}")
        action.set_defaults(name=name)
        action.add_argument("--cron", required=True, metavar="CRON", help="minute, hour, day, month, weekday in UTC, such as '0 2 * * *'")
        action.add_argument("--name", dest="schedule", default=name, metavar="SCHEDULE", help=f"name of the schedule (default: {name})")
        action.add_argument("--replace", action="store_true", help="replace the schedule of this name")
    changes = {"list": "show all schedules", "pause": "start no more runs", "resume": "start runs again", "remove": "delete a schedule"}
    for name, text in changes.items():
        action = actions.add_parser(name, parents=listed, help=text)
        action.set_defaults(command=f"schedule {name}")
        if name != "list":
            action.add_argument("schedule", metavar="SCHEDULE", help="name of the schedule, as `schedule list` shows it")


if __name__ == "__main__":
    sys.exit(main())
