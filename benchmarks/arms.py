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

from components.common.params import Params, load


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
        f"| arm | {' | '.join(f'{name}: macro AUROC | minus {reference} (interval)' for name in cohorts)} |",
        "|---|" + "---:|---|" * len(cohorts),
    ]
    for arm in params.study.arms:
        cells = [
            text for cohort in cohorts for text in (f"{metrics[f'probe_{cohort}_{arm}']:.3f}", difference(metrics, f"probe_{cohort}_{arm}"))
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(metrics: dict[str, Any], name: str) -> str:
    """With its interval, or a dash."""
    values = [metrics.get(f"{name}_difference{end}") for end in ("", "_low", "_high")]
    return "-" if None in values else "{:+.3f} ({:+.3f} to {:+.3f})".format(*values)


if __name__ == "__main__":
    main()
