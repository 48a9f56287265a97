"""All parameters: params.yaml as one frozen model with a field per section."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, create_model

from components.common.runs.params import Evaluate, Register, Runtime, Section, read_yaml, validate
from components.evaluate.params import Duplicates, Study, Sweep
from components.heads import HEADS
from components.monitor.params import Monitor
from components.preprocess.params import Preprocess
from components.pretrain.params import Pretrain
from components.simulate.params import Simulate


class _Stages(Section):
    """The sections of everything but the heads."""

    simulate: Simulate = Simulate()
    preprocess: Preprocess = Preprocess()
    pretrain: Pretrain = Pretrain()
    evaluate: Evaluate = Evaluate()
    study: Study = Study()
    sweep: Sweep = Sweep()
    duplicates: Duplicates = Duplicates()
    register_: Register = Field(default=Register(), alias="register")
    monitor: Monitor = Monitor()
    runtime: Runtime = Runtime()

    def section(self, name: str) -> Any:
        """Returns a section by its name in params.yaml."""
        return getattr(self, "register_" if name == "register" else name)

    def arguments(self, command: str) -> dict[str, Any]:
        """Returns the sections that a command takes, by keyword.

        Args:
            command: as on the command line, such as `classify` or `evaluate study`.
        """
        return {keyword: self.section(name) for keyword, name in _ARGUMENTS.get(command, _of_a_stage(command)).items()}


def _of_a_stage(stage: str) -> dict[str, str]:
    return {"params": stage, "runtime": "runtime"}


_ARGUMENTS = {
    "simulate": {"params": "simulate"},
    "preprocess merge": {"runtime": "runtime"},
    "evaluate": {"params": "evaluate"},
    "evaluate study": {"params": "study", "evaluate": "evaluate"},
    "evaluate duplicates": {"params": "duplicates"},
    "register": {"params": "register"},
    "register --rollback": {"params": "register"},
    "register --demote": {"params": "register"},
    "monitor": {"params": "monitor"},
    "monitor reference": {"params": "monitor"},
    "predict": _of_a_stage("preprocess"),
    "validate": {**_of_a_stage("preprocess"), "evaluate": "evaluate"},
}
"""Section by keyword, of the commands that do not take their own section and `runtime`."""

if TYPE_CHECKING:
    Params = _Stages  # mypy cannot follow a model made at run time
else:
    Params = create_model("Params", __base__=_Stages, **{name: (head.params, head.params()) for name, head in HEADS.items()})


def load(path: str | Path = "params.yaml", overrides: list[str] | None = None) -> Params:
    """Reads and checks a parameter file.

    Args:
        path: a YAML file; missing sections and keys take their defaults.
        overrides: items `section.key=value`, the value in YAML.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown or a value out of bounds; names the key.
    """
    return validate(Params, read_yaml(Path(path)), overrides, str(path))


def parse(sections: dict[str, str], overrides: list[str] | None = None) -> Params:
    """Reads and checks parameters as they travel through a pipeline.

    Args:
        sections: JSON by section; missing sections take their defaults.
        overrides: items `section.key=value`, the value in YAML.

    Raises:
        UserError: as for `load`.
    """
    raw = {name: yaml.safe_load(text) for name, text in sections.items()}
    return validate(Params, raw, overrides, "the parameters of the pipeline")
