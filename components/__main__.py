"""`python -m components STAGE --INPUT PATH ... --out PATH [--params FILE] [--set section.key=value ...]`."""

from components.common.runs import signals

signals.install()  # before the imports below and in the stages, which take seconds

import argparse  # noqa: E402
import importlib  # noqa: E402
import importlib.util  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NamedTuple, NoReturn  # noqa: E402


class Option(NamedTuple):
    """An input of a stage."""

    name: str
    help: str
    many: bool = False
    required: bool = True
    metavar: str = "PATH"


class StageCommand(NamedTuple):
    """What the command line knows of a stage."""

    help: str
    inputs: tuple[Option, ...] = ()
    function: str = "run"
    """Of the stage's run.py."""
    needs_out: bool = True
    """Whether --out must be given."""


SHARDS = Option("shards", "output folders of preprocess", many=True)
START = Option("start", "a MoCo checkpoint, an ImageNet ResNet or an output folder of pretrain; without it random weights", required=False)
BACKBONE = Option("backbone", "output folder of pretrain; without it training starts from scratch", required=False)

STAGES = {
    "simulate": StageCommand("make a cohort of phantom DICOM files"),
    "preprocess": StageCommand(
        "turn a folder of DICOM files into Parquet shards",
        (
            Option("raw", "folder of DICOM, PNG or JPEG files; labels.csv and boxes.csv at its top are read"),
            Option("partition", "only the I-th of N slices, from 0 to N - 1; `preprocess merge` joins them", required=False, metavar="I/N"),
        ),
    ),
    "preprocess merge": StageCommand(
        "join the outputs of preprocess --partition",
        (Option("shards", "output folders of all partitions", many=True),),
        function="merge_partitions",
    ),
    "pretrain": StageCommand("pretrain a backbone with MoCo v2 and the IFA loss", (SHARDS, START)),
    "classify": StageCommand("fine-tune a classifier of findings", (SHARDS, BACKBONE)),
    "detect": StageCommand("train a detector of findings with boxes", (SHARDS, BACKBONE)),
    "invert": StageCommand(
        "train a GAN and an encoder that finds the latents of an image",
        (
            SHARDS,
            BACKBONE,
            Option("perceptual", "output folder of pretrain: the backbone of the perceptual loss (default: --backbone)", required=False),
            Option(
                "judge", "output folder of pretrain: a backbone that the errors are measured in; without it random weights", required=False
            ),
            Option("generator", "output folder of an earlier invert, whose generator is used; without it one is trained", required=False),
        ),
    ),
    "evaluate": StageCommand(
        "compute metrics with confidence intervals, and a report",
        (
            Option("predictions", "output folders of classify, detect and invert", many=True),
            Option("baseline", "output folders to compare with, at most one a task", many=True, required=False),
        ),
    ),
    "evaluate study": StageCommand(
        "compare the arms of a study, claim by claim, on one page",
        (Option("cells", "folder with the study's cells, CLAIM/CONDITION/ARM/SEED"),),
        function="study",
    ),
    "register": StageCommand(
        "register a model in MLflow and decide on its alias",
        (
            Option("model", "output folder of classify, detect or invert"),
            Option("evaluation", "output folder of evaluate, which had that model's folder among its --predictions"),
        ),
    ),
    "register --rollback": StageCommand(
        "make the champion before the present one the champion again", function="rollback", needs_out=False
    ),
    "register --demote": StageCommand("take the champion's alias from it", function="demote", needs_out=False),
    "predict": StageCommand(
        "score a cohort from elsewhere with a registered model",
        (
            Option("model", "models:/NAME@champion or the like, or an output folder of classify, detect, invert or register"),
            Option("raw", "folder of DICOM, PNG or JPEG files; labels.csv and boxes.csv at its top are read"),
        ),
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one stage and returns the exit code: 0 done, 2 the user's mistake, 75 stopped and saved."""
    options = vars(_parser().parse_args(_join_words(sys.argv[1:] if arguments is None else arguments)))
    _use_environment()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        return _run(**options)
    except signals.Interrupted:
        if _is_first():
            print(f"{options['stage']}: stopped; run the same command to continue", file=sys.stderr)
        return signals.EXIT_CODE


def _run(stage: str, params: str, set: list[str], **paths: object) -> int:
    from components.common.errors import SharedError, UserError
    from components.common.runs.params import load

    try:
        module = importlib.import_module(f"components.{stage.partition(' ')[0]}.run")
        getattr(module, STAGES[stage].function)(**paths, params=load(params, set))
    except UserError as error:
        if _is_first() or not isinstance(error, SharedError):
            print(f"{stage}: {error}", file=sys.stderr)
        return 2
    return 0


def _is_first() -> bool:
    """Whether this is the process that speaks for all that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def _join_words(arguments: list[str]) -> list[str]:
    """A stage's name may have two words, of which the second, if it is an option, may stand anywhere."""
    for place, word in enumerate(arguments[1:], 1):
        name = f"{arguments[0]} {word}"
        if name in STAGES and (place == 1 or word.startswith("--")):
            return [name, *arguments[1:place], *arguments[place + 1 :]]
    return arguments


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="cxr" if Path(sys.argv[0]).name == "cxr" else "python -m components", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, command in STAGES.items():
        stage = stages.add_parser(name, help=command.help, description=command.help)
        for option in command.inputs:
            nargs = "+" if option.many else None
            stage.add_argument(f"--{option.name}", nargs=nargs, required=option.required, metavar=option.metavar, help=option.help)
        stage.add_argument("--out", required=command.needs_out, metavar="PATH", help="output folder")
        stage.add_argument("--params", default="params.yaml", metavar="FILE", help="parameters (default: params.yaml)")
        stage.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a parameter")
    return parser


def _use_environment() -> None:
    """Continues in .venv when started by a Python that lacks the packages, as `.venv/bin/dvc repro` does."""
    if all(map(importlib.util.find_spec, ("mlflow", "pyarrow", "pydantic", "tqdm"))):
        return
    root = Path(__file__).parents[1]
    python = root / ".venv" / "bin" / "python"
    if not python.exists() or Path(sys.prefix) == root / ".venv":
        print(f"{sys.executable} lacks this project's packages: run `make .venv` and `. .venv/bin/activate`", file=sys.stderr)
        sys.exit(2)
    os.execv(python, [str(python), "-m", "components", *sys.argv[1:]])  # noqa: S606


def entry_point() -> NoReturn:
    """Runs one stage and ends the process: `python -m components` and the console script `cxr`."""
    code = main()
    signals.ignore()  # the result stands; an interpreter that shuts down would still let a signal kill it
    sys.exit(code)


if __name__ == "__main__":
    entry_point()
