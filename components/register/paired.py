"""Differences between two versions, by the code of `evaluate --baseline`."""

from collections.abc import Callable, Sequence
from typing import Any

from components.common.runs.params import Evaluate, Register
from components.common.statistics.differences import Difference
from components.evaluate.predictions import Model
from components.register.candidate import Candidate
from components.register.gate import CONFIDENCE
from components.register.task import Champion


def differences(read: Callable[..., Any], new: Candidate, champion: Champion, settings: Register) -> Sequence[Difference]:
    """A new version minus the champion.

    Args:
        read: of the task's module in evaluate: test rows, model and parameters to what can be compared.
        new: the version to be judged.
        champion: the version to be judged by.
        settings: resamples and seed count.

    Raises:
        UserError: the two were not tested against the same.
    """
    params = Evaluate(resamples=settings.resamples, seed=settings.seed, confidence=CONFIDENCE)
    pairs = ((new.test_predictions, new.description), (champion.predictions, champion.description))
    first, second = (read(rows, _model(about), params) for rows, about in pairs)
    found: Sequence[Difference] = first.compare(second)
    return found


def _model(about: dict[str, Any]) -> Model:
    """What evaluate wants to know of a model, as far as it matters to a difference."""
    return Model(folder="", task=about["task"], description=about, record={}, history={}, figures={}, digests={})
