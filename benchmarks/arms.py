"""Pretrain every arm of the study on all cohorts together, and evaluate its features with a linear probe on each cohort.

    python -m benchmarks.arms --shards DIR ... --out DIR [--params FILE] [--set section.key=value ...]

Prints two tables of Markdown, which docs/results.md quotes. Outputs that exist already are reused.
"""

from pathlib import Path
from typing import Any

from benchmarks import stages
from benchmarks.stages import overrides, read_json, with_interval
from components.params import Params, load

ENDS = ("loss_nce", "similarity_layer1", "similarity_layer4", "positive_similarity", "negative_similarity", "feature_std")
"""Metrics at the end of pretraining."""


def main() -> None:
    """Run pretrain, classify and evaluate study, and print the tables."""
    parser = stages.parser(__doc__ or "")
    parser.add_argument("--shards", required=True, nargs="+", help="output folders of preprocess")
    options = parser.parse_args()
    params = load(options.params, options.set)
    common = ["--params", options.params, *overrides(options.set)]
    backbones, cells, page = (options.out / name for name in ("backbones", "cells", "page"))
    for arm in params.study.arms:
        for seed in map(str, params.study.seeds):
            backbone = backbones / arm / seed
            settings = overrides([f"pretrain.preset={arm}", f"pretrain.seed={seed}"])
            run(["pretrain", "--shards", *options.shards, *common, *settings], backbone)
            for shards in options.shards:
                settings = overrides(["classify.mode=linear", f"classify.seed={seed}"])
                probe = ["classify", "--shards", shards, "--backbone", str(backbone), *common, *settings]
                run(probe, cells / "probe" / Path(shards).name / arm / seed)
    run(["evaluate", "study", "--cells", str(cells), *common], page)
    print(probe_table(read_json(page / "metrics.json"), [Path(shards).name for shards in options.shards], params))
    print()
    first = str(params.study.seeds[0])
    print(end_table({arm: read_json(backbones / arm / first / "metrics.json") for arm in params.study.arms}))


def run(command: list[str], out: Path) -> None:
    """Run a stage unless its output exists."""
    if not (out / "run.json").exists():
        stages.run([*command, "--out", str(out)])


def probe_table(metrics: dict[str, Any], cohorts: list[str], params: Params) -> str:
    """Tabulate the probes' macro test AUROC and its difference from the reference arm."""
    reference = params.study.reference
    lines = [
        f"| arm | {' | '.join(f'{name}: macro AUROC (interval) | minus {reference} (interval)' for name in cohorts)} |",
        "|---|" + "---|---|" * len(cohorts),
    ]
    for arm in params.study.arms:
        names = [f"probe_{cohort}_{arm}" for cohort in cohorts]
        cells = [cell for name in names for cell in (with_interval(metrics, name), with_interval(metrics, f"{name}_difference", "{:+.3f}"))]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def end_table(metrics: dict[str, dict[str, Any]]) -> str:
    """Tabulate the metrics at the end of pretraining; an arm that is not trained has none."""
    lines = [f"| end of pretraining | {' | '.join(ENDS)} |", "|---|" + "---:|" * len(ENDS)]
    lines += [f"| {arm} | {' | '.join(f'{values[name]:.3f}' for name in ENDS)} |" for arm, values in metrics.items() if values]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
