"""Inputs of a stage on the command line, and their check before the stage is imported."""

from dataclasses import dataclass
from pathlib import Path

from components.common.errors import UserError
from components.common.runs.inputs import require_output


@dataclass(frozen=True)
class Input:
    """An input of a stage, given as an option."""

    name: str
    help: str
    many: bool = False
    required: bool = True
    metavar: str = "PATH"
    marker: str = ""  # for an output folder of another stage: the file that it must contain
    made_by: str = ""  # the stage that writes `marker`

    def check(self, value: str | list[str] | None) -> None:
        """Checks in milliseconds what would otherwise fail after the imports of the stage, which take seconds.

        Raises:
            UserError: a folder is missing or is not a finished output.
        """
        for uri in [value] if isinstance(value, str) else value or []:
            if self.marker:
                require_output(uri, self.marker, self.made_by)
            elif self.metavar == "PATH" and ":/" not in uri and not Path(uri).exists():
                raise UserError(f"{uri}: no such file or folder; check --{self.name}")
