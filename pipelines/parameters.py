"""The parameters of the pipelines: locations, a JSON text per section of params.yaml, and the threshold of the gate.

`start` is the starting point of pretraining. Sections travel as text since Kubeflow turns the numbers in a mapping into floats.
`register.min_auroc` is a parameter of its own, since the condition of a pipeline cannot look into a text.
"""

import json
from typing import Any

from components.heads import HEADS
from components.params import Params
from pipelines.study_plan import COMPARED

_LOCATIONS = ("raw", "root", "start", "data_version")
_REGISTERED = ("preprocess", "pretrain", *HEADS, "evaluate", "register", "runtime", "min_auroc")

PARAMETERS: dict[str, tuple[str, ...]] = {
    "training": (*_LOCATIONS, *_REGISTERED),
    "smoke": ("root", "start", "simulate", *_REGISTERED),
    "study": (*_LOCATIONS, "preprocess", *COMPARED, "evaluate", "study", "runtime"),
    "sweep": (*_LOCATIONS, "preprocess", "pretrain", *HEADS, "evaluate", "sweep", "runtime"),
}
"""Names by pipeline."""


def defaults(name: str, params: Params) -> dict[str, Any]:
    """Returns the default values of a pipeline's parameters; `raw` and `root` have none."""
    special = {"start": "", "data_version": "", "min_auroc": params.register_.min_auroc}
    names = [parameter for parameter in PARAMETERS[name] if parameter not in ("raw", "root")]
    return {parameter: special[parameter] if parameter in special else _section(params, parameter) for parameter in names}


def arguments(name: str, params: Params, raw: str | None, root: str, data_version: str = "", start: str = "") -> dict[str, Any]:
    """Returns the arguments of a run; `raw` is None for `smoke`, which simulates its files, and `data_version` an MD5 of DVC."""
    locations = {"raw": raw, "start": start, "root": root, "data_version": data_version}
    return defaults(name, params) | {parameter: value for parameter, value in locations.items() if parameter in PARAMETERS[name]}


def _section(params: Params, name: str) -> str:
    values = params.section(name).values()
    return json.dumps({key: value for key, value in values.items() if (name, key) != ("register", "min_auroc")})
