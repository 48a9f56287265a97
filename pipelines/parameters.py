"""The parameters of the pipelines: locations, a JSON text per section of params.yaml, and the threshold of the gate.

`start` is the starting point of pretraining, `model` the address of the model that scores. Sections travel as text since Kubeflow turns
the numbers in a mapping into floats. `register.min_auroc` is a parameter of its own, since the condition of a pipeline cannot look into
a text.
"""

import json
from typing import Any

from components.common.errors import UserError
from components.heads import HEADS
from components.params import Params
from pipelines.settings import GATED
from pipelines.study_plan import COMPARED

_LOCATIONS = ("raw", "root", "start", "data_version")
_REGISTERED = ("preprocess", "pretrain", *HEADS, "evaluate", "register", "runtime", "min_auroc")

PARAMETERS: dict[str, tuple[str, ...]] = {
    "training": (*_LOCATIONS, *_REGISTERED),
    "smoke": ("root", "start", "simulate", *_REGISTERED),
    "scoring": ("raw", "root", "model", "data_version", "preprocess", "monitor", "runtime"),
    "study": (*_LOCATIONS, "preprocess", *COMPARED, "evaluate", "study", "runtime"),
    "sweep": (*_LOCATIONS, "preprocess", "pretrain", *HEADS, "evaluate", "sweep", "runtime"),
}
"""Names by pipeline."""


def defaults(name: str, params: Params) -> dict[str, Any]:
    """Returns the default values of a pipeline's parameters; `raw`, `root` and `model` have none."""
    special = {"start": "", "data_version": "", "min_auroc": params.register_.min_auroc}
    names = [parameter for parameter in PARAMETERS[name] if parameter not in ("raw", "root", "model")]
    return {parameter: special[parameter] if parameter in special else _section(params, parameter) for parameter in names}


def arguments(
    name: str, params: Params, raw: str | None, root: str, data_version: str = "", start: str = "", model: str = ""
) -> dict[str, Any]:
    """Returns the arguments of a run; `raw` is None for `smoke`, which simulates its files, and `data_version` an MD5 of DVC.

    Raises:
        UserError: the pipeline needs a model and none is given, or it does not take what is given.
    """
    for option, value in (("start", start), ("model", model)):
        if value and option not in PARAMETERS[name]:
            raise UserError(f"--{option} {value}: the pipeline {name} does not take it; leave it out")
    if "model" in PARAMETERS[name] and not model:
        raise UserError(f"--model: is missing; name the registered model of {name}, such as models:/cxr-{GATED}@champion")
    locations = {"raw": raw, "start": start, "root": root, "model": model, "data_version": data_version}
    return defaults(name, params) | {parameter: value for parameter, value in locations.items() if parameter in PARAMETERS[name]}


def _section(params: Params, name: str) -> str:
    values = params.section(name).values()
    return json.dumps({key: value for key, value in values.items() if (name, key) != ("register", "min_auroc")})
