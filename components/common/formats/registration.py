"""`registration.json`: the version of a model in the registry, its alias, and the reasons for it."""

from typing import NotRequired, TypedDict

REGISTRATION = "registration.json"


class Difference(TypedDict):
    """How much better a model is than the champion, with a confidence interval."""

    estimate: float
    low: float
    high: float


class Registration(TypedDict):
    """The content of a registration.json; what is not required is missing after a rollback or demotion."""

    name: str  # name of the registered model
    task: NotRequired[str]
    version: str
    model_uri: str  # `models:/NAME/VERSION`
    alias: str  # champion or challenger
    reason: str
    metric: NotRequired[str]  # the metric of the evaluation by which models are compared
    value: NotRequired[float | None]
    min_auroc: NotRequired[float]  # `register.min_auroc`, for classifiers
    champion_before: str | None  # version that was the champion until then
    difference: NotRequired[Difference | None]
    reused: NotRequired[bool]  # whether the same model was registered before
