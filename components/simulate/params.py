"""Parameters of `simulate`."""

from typing import Annotated

from pydantic import Field

from components.common.runs.params import Positive, Section, Seed


class Simulate(Section):
    """The phantom cohort."""

    patients: Positive = 240
    """Number of patients; each has one to three images."""
    size: Annotated[int, Field(ge=64, le=2048)] = 160
    """Longer side of the images, in pixels."""
    seed: Seed = 0
    """Each seed gives another cohort."""
