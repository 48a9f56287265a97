"""Pretrains every arm on all cohorts together, and reads their features with a linear probe on each cohort.

    python -m benchmarks.arms --shards DIR ... --out DIR [--params FILE] [--set section.key=value ...]

Prints a table of Markdown; docs/results.md holds one. What is done already is not done again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from components.params import Params, load


def main() -> None:
    """Runs pretrain, classify and evaluate study, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", required=True, nargs="+")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    params = load(options.params, options.set)
    common = ["--params", options.params, *(word for item in options.set for word in ("--set", item))]
    for arm in params.study.arms:
        for seed in map(str, params.study.seeds):
            backbone = options.out / "backbones" / arm / seed
            run(["pretrain", "--shards", *options.shards, *common, *setting(pretrain__preset=arm, pretrain__seed=seed)], backbone)
            for shards in options.shards:
                cell = options.out / "cells" / "probe" / Path(shards).name / arm / seed
                probe = ["classify", "--shards", shards, "--backbone", str(backbone)]
                run([*probe, *common, *setting(classify__mode="linear", classify__seed=seed)], cell)
    page = options.out / "page"
    run(["evaluate", "study", "--cells", str(options.out / "cells"), *common], page)
    print(table(read(page / "metrics.json"), [Path(shards).name for shards in options.shards], params))
    print()
    print(ends({arm: read(options.out / "backbones" / arm / str(params.study.seeds[0]) / "metrics.json") for arm in params.study.arms}))


def run(command: list[str], out: Path) -> None:
    """Runs a stage, unless its output is there."""
    if not (out / "run.json").exists():
        subprocess.run([sys.executable, "-m", "components", *command, "--out", str(out)], check=True)


def setting(**values: str) -> list[str]:
    """Overrides of parameters: section__key=value."""
    return [word for name, value in values.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def table(metrics: dict[str, Any], cohorts: list[str], params: Params) -> str:
    """Macro test AUROC of the probes, and the difference to the reference with its interval."""
    reference = params.study.reference
    lines = [
        f"| arm | {' | '.join(f'{name}: macro AUROC (interval) | minus {reference} (interval)' for name in cohorts)} |",
        "|---|" + "---|---|" * len(cohorts),
    ]
    for arm in params.study.arms:
        names = [f"probe_{cohort}_{arm}" for cohort in cohorts]
        cells = [cell(metrics, name, end, form) for name in names for end, form in (("", "{:.3f}"), ("_difference", "{:+.3f}"))]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ends(metrics: dict[str, dict[str, Any]]) -> str:
    """What pretraining ended with, for the first seed of each arm that was trained."""
    names = ("loss_nce", "similarity_layer1", "similarity_layer4", "positive_similarity", "negative_similarity", "feature_std")
    lines = [f"| end of pretraining | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    lines += [f"| {arm} | {' | '.join(f'{values[name]:.3f}' for name in names)} |" for arm, values in metrics.items() if values]
    return "\n".join(lines)


def cell(metrics: dict[str, Any], name: str, end: str, form: str) -> str:
    """A number with its interval, or a dash."""
    values = [metrics.get(f"{name}{end}{limit}") for limit in ("", "_low", "_high")]
    return "-" if None in values else f"{form} ({form} to {form})".format(*values)


if __name__ == "__main__":
    main()
