"""Run a study whose backbones are pretrained on several cohorts, and judge them on one. Models that exist are kept.

    python -m benchmarks.study --shards DIR ... --judged DIR --pretrained DIR --out DIR [--heads classify ...] [--params FILE] [--set ...]

--shards are pretrained on, without labels, into --pretrained, which the studies of several cohorts share; --out gets the cells of the
cohort --judged. With other `study.seeds` each, several processes work at the same time. `evaluate study --cells OUT` makes the page.
Prints the end of pretraining of each backbone as a table of Markdown.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks import stages
from benchmarks.stages import read_json
from components.common.formats.documents import METRICS, RUN_RECORD
from components.heads import HEADS
from components.params import load
from pipelines.kfp_components import model as run_model
from pipelines.study_plan import StudyPlan

ENDS = (
    "loss_nce",
    "similarity_layer1",
    "similarity_layer4",
    "positive_similarity",
    "negative_similarity",
    "feature_std",
    "knn_auroc_macro",
)
"""Metrics at the end of pretraining."""


def main() -> None:
    """Make the models, phase by phase, and print the table."""
    parser = stages.parser(__doc__ or "")
    parser.add_argument("--shards", required=True, nargs="+", help="output folders of preprocess to pretrain on")
    parser.add_argument("--judged", required=True, help="the one whose labels judge the arms")
    parser.add_argument("--pretrained", required=True, help="folder of bases and backbones")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS, help="heads to judge by; detect needs boxes")
    options = parser.parse_args()
    params = load(options.params, options.set)
    study = StudyPlan(options.judged, tuple(options.shards), str(options.out), options.pretrained, params, tuple(options.heads))
    runtime = json.dumps(params.runtime.values())
    for model in (model for phase in study.phases() for model in phase):
        if not Path(model["folder"], RUN_RECORD).exists():
            run_model.python_func(item=json.dumps(model), runtime=runtime, processes=1)
    print(table({f"{arm}, {seed}": study.backbone(arm, seed) for arm in params.study.arms for seed in params.study.seeds}))


def table(folders: dict[str, str]) -> str:
    """Tabulate the metrics at the end of pretraining by backbone; a control has none."""
    found: dict[str, dict[str, Any]] = {name: read_json(Path(folder, METRICS)) for name, folder in folders.items()}
    lines = [f"| arm, seed | {' | '.join(ENDS)} |", "|---|" + "---:|" * len(ENDS)]
    lines += [f"| {name} | {' | '.join(_number(values.get(end)) for end in ENDS)} |" for name, values in found.items() if values]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
