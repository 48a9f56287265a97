"""`python -m components STAGE --INPUT PATH ... --out PATH [--params FILE] [--set section.key=value ...]`."""

from components.common.runs import cores, signals

signals.install()  # before the imports below and those of the stages, which take seconds
cores.prepare_openmp()

import argparse  # noqa: E402
import importlib  # noqa: E402
import importlib.util  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NamedTuple, NoReturn  # noqa: E402

PACKAGES = ("mlflow", "pyarrow", "pydantic", "tqdm", "yaml")
if not all(map(importlib.util.find_spec, PACKAGES)):
    print(f"{sys.executable} lacks the packages of this project; run `make .venv` and `. .venv/bin/activate`", file=sys.stderr)
    sys.exit(2)

from components.common.errors import SharedError, UserError, disk_errors, temporary_folder  # noqa: E402
from components.common.formats import backbone  # noqa: E402
from components.common.formats.appearance import APPEARANCE  # noqa: E402
from components.common.formats.documents import METRICS  # noqa: E402
from components.common.formats.manifest import MANIFEST  # noqa: E402
from components.common.formats.model import DESCRIPTION  # noqa: E402
from components.common.runs.command import Input  # noqa: E402
from components.common.runs.provenance import exit_code  # noqa: E402
from components.heads import ANY_HEAD, HEADS  # noqa: E402


class Command(NamedTuple):
    """A stage, or one of its further commands."""

    help: str
    inputs: tuple[Input, ...] = ()
    function: str = "run"
    """Function in the stage's run.py."""
    needs_out: bool = True
    """Whether --out is required."""


RAW = Input("raw", "folder of DICOM, PNG or JPEG files; labels.csv and boxes.csv at its top are read")
SHARDS = Input("shards", "output folders of preprocess", many=True, marker=MANIFEST, made_by="preprocess")
BACKBONE = Input(
    "backbone",
    "output folder of pretrain; without it training starts from scratch",
    required=False,
    marker=backbone.BACKBONE,
    made_by="pretrain",
)
COHORT = (
    Input("model", "models:/NAME@champion or the like, or an output folder of a head or of register"),
    replace(RAW, required=False),
    replace(SHARDS, required=False, help="output folders of preprocess, instead of --raw"),
)
"""A model, and a cohort from elsewhere."""

COMPARED = replace(BACKBONE, help="output folder of pretrain, whose features monitor is to compare")

SCORED = Input(
    "scored",
    "output folders of predict, or folders that hold such: images that the same model has scored there are left out",
    many=True,
    required=False,
)

COMMANDS = {
    "simulate": Command("make a cohort of phantom DICOM files"),
    "preprocess": Command(
        "turn a folder of DICOM files into Parquet shards",
        (RAW, Input("partition", "only the I-th of N slices, I from 0; `preprocess merge` joins them", required=False, metavar="I/N")),
    ),
    "preprocess merge": Command(
        "join the outputs of preprocess --partition",
        (Input("shards", "output folders of all partitions", many=True),),
        function="merge_partitions",
    ),
    "pretrain": Command(
        "pretrain a backbone with MoCo v2 and the IFA loss",
        (
            SHARDS,
            Input(
                "start", "a MoCo checkpoint, an ImageNet ResNet or an output folder of pretrain; without it random weights", required=False
            ),
        ),
    ),
    **{name: Command(head.help, (SHARDS, BACKBONE, *head.inputs)) for name, head in HEADS.items()},
    "evaluate": Command(
        "compute metrics with confidence intervals, and a report",
        (
            Input("predictions", f"output folders of {ANY_HEAD}", many=True, marker=DESCRIPTION, made_by=ANY_HEAD),
            Input(
                "baseline",
                "output folders to compare with, at most one per head",
                many=True,
                required=False,
                marker=DESCRIPTION,
                made_by=ANY_HEAD,
            ),
        ),
    ),
    "evaluate study": Command(
        "compare the arms of a study, claim by claim, on one page",
        (Input("cells", "folder with the cells of the study, CLAIM/CONDITION/ARM/SEED"),),
        function="study",
    ),
    "evaluate duplicates": Command(
        "list images that are nearly the same picture, across splits and patients",
        (SHARDS, replace(BACKBONE, help="output folder of pretrain, whose features must agree as well")),
        function="duplicates",
    ),
    "register": Command(
        "register a model in MLflow and decide on its alias",
        (
            Input("model", f"output folder of {ANY_HEAD}", marker=DESCRIPTION, made_by=ANY_HEAD),
            Input("evaluation", "output folder of evaluate with that model among its --predictions", marker=METRICS, made_by="evaluate"),
        ),
    ),
    "register --rollback": Command("make the previous champion the champion again", function="rollback", needs_out=False),
    "register --demote": Command("remove the champion alias", function="demote", needs_out=False),
    "predict": Command(
        "score a cohort from elsewhere with a registered model",
        (
            *COHORT,
            COMPARED,
            SCORED,
            Input("dicom", "folder for the results as DICOM objects, which name patients; not for --shards", required=False, metavar="DIR"),
        ),
    ),
    "validate": Command("score and evaluate a labelled cohort from elsewhere: external validation", COHORT),
    "monitor": Command(
        "compare scored images with a reference; exit code 3 if they have drifted",
        (
            Input("reference", "models:/NAME@champion or the like, or an output folder of monitor reference"),
            Input("predictions", "output folder of predict", marker=APPEARANCE, made_by="predict"),
        ),
    ),
    "monitor reference": Command(
        "record what a cohort and its scores are like",
        (
            Input("predictions", f"output folder of {ANY_HEAD}, or of predict", marker=DESCRIPTION, made_by=f"{ANY_HEAD} or predict"),
            replace(SHARDS, help="output folders of preprocess with these images; not for an output of predict", required=False),
            COMPARED,
            Input("model", "models:/NAME@champion or the like: the version that the reference is attached to", required=False),
        ),
        function="reference",
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 2 a mistake of the user, 3 an alarm of monitor, 75 stopped after saving."""
    options = vars(_parser().parse_args(_join_words(sys.argv[1:] if arguments is None else arguments)))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        return _run(**options)
    except signals.Interrupted:
        if _is_first():
            print(f"{options['command']}: stopped; run the same command to continue", file=sys.stderr)
        return signals.EXIT_CODE


def _run(command: str, params: str, set: list[str], **paths: str | list[str] | None) -> int:
    from components.params import load

    try:
        with disk_errors(Path.cwd(), temporary_folder()):
            sections = load(params, set).arguments(command)
            if os.environ.get("WORLD_SIZE", "1") == "1":  # several processes look together, so that one of them reports
                for given in COMMANDS[command].inputs:
                    given.check(paths[given.name])
            module = importlib.import_module(f"components.{command.partition(' ')[0]}.run")
            return int(getattr(module, COMMANDS[command].function)(**paths, **sections) or 0)
    except UserError as error:
        if _is_first() or not isinstance(error, SharedError):
            print(f"{command}: {error}", file=sys.stderr)
        return exit_code(error)


def _is_first() -> bool:
    """Whether this is the process that reports for all that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def _join_words(arguments: list[str]) -> list[str]:
    """Joins the two words of a command's name; the second, if it is an option, may stand anywhere."""
    for place, word in enumerate(arguments[1:], 1):
        name = f"{arguments[0]} {word}"
        if name in COMMANDS and (place == 1 or word.startswith("--")):
            return [name, *arguments[1:place], *arguments[place + 1 :]]
    return arguments


class _Parser(argparse.ArgumentParser):
    """Reports a mistake on the command line in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="cxr" if Path(sys.argv[0]).name == "cxr" else "python -m components", description=__doc__)
    stages = parser.add_subparsers(dest="command", required=True, metavar="STAGE")
    for name, command in COMMANDS.items():
        stage = stages.add_parser(name, help=command.help, description=command.help)
        for given in command.inputs:
            nargs = "+" if given.many else None
            stage.add_argument(f"--{given.name}", nargs=nargs, required=given.required, metavar=given.metavar, help=given.help)
        stage.add_argument("--out", required=command.needs_out, metavar="PATH", help="output folder")
        stage.add_argument("--params", default="params.yaml", metavar="FILE", help="parameters (default: params.yaml)")
        stage.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a parameter")
    return parser


def entry_point() -> NoReturn:
    """Runs one command and ends the process: `python -m components` and the console script `cxr`."""
    code = main()
    signals.ignore()  # the result stands; an interpreter that shuts down would still let a signal kill it
    sys.exit(code)


if __name__ == "__main__":
    entry_point()
