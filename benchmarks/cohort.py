"""The stages on a cohort of real files: what they make of it and how long each takes, as a page of Markdown.

    export CXR_PSEUDONYM_KEY=...
    python -m benchmarks.cohort --raw DIR --out DIR [--params FILE] [--set section.key=value ...]

docs/results.md holds its output.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Runs preprocess, pretrain, classify with and without the backbone, and evaluate; prints the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    common = ["--params", options.params, *(word for item in options.set for word in ("--set", item))]
    shards, backbone, scratch, tuned, evaluation = (
        str(options.out / name) for name in ("shards", "backbone", "scratch", "classify", "evaluation")
    )
    commands = {
        "preprocess": ["preprocess", "--raw", options.raw, "--out", shards],
        "pretrain": ["pretrain", "--shards", shards, "--out", backbone],
        "classify": ["classify", "--shards", shards, "--backbone", backbone, "--out", tuned],
        "classify, from scratch": ["classify", "--shards", shards, "--out", scratch],
        "evaluate": ["evaluate", "--predictions", tuned, scratch, "--out", evaluation],
    }
    seconds = {name: run([*command, *common]) for name, command in commands.items()}
    print(page(read(shards, "manifest.json"), read(evaluation, "metrics.json"), read(backbone, "metrics.json"), seconds))


def run(command: list[str]) -> float:
    """Runs a stage; returns its seconds, the start of Python included."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "components", *command], check=True)
    return time.monotonic() - started


def read(folder: str, name: str) -> dict[str, Any]:
    """A JSON file of an output folder."""
    content: dict[str, Any] = json.loads(Path(folder, name).read_text())
    return content


def page(manifest: dict[str, Any], metrics: dict[str, Any], pretrained: dict[str, Any], seconds: dict[str, float]) -> str:
    """The tables."""
    counts = manifest["counts"]
    lines = [
        f"{counts['files']} files: {counts['rows']} rows, {counts['quarantined']} quarantined, {counts['duplicates']} duplicates. "
        f"Images in train, val, test: {', '.join(str(counts['images'][split]) for split in ('train', 'val', 'test'))}.",
        "",
        "| stage | seconds |",
        "|---|---:|",
        *(f"| {name} | {value:.0f} |" for name, value in seconds.items()),
        "",
        "| test AUROC (95 % interval) | pretrained | from scratch |",
        "|---|---|---|",
        *(
            f"| {name} | {cell(metrics, 'classify', name)} | {cell(metrics, 'classify_2', name)} |"
            for name in ["macro", *manifest["findings"]]
        ),
        "",
        "| end of pretraining | |",
        "|---|---:|",
        *(f"| {name} | {value:.3f} |" for name, value in pretrained.items()),
    ]
    return "\n".join(lines)


def cell(metrics: dict[str, Any], prefix: str, finding: str) -> str:
    """A value with its interval, or a dash."""
    values = [metrics.get(f"{prefix}_test_auroc_{finding}{end}") for end in ("", "_low", "_high")]
    return "-" if None in values else f"{values[0]:.3f} ({values[1]:.3f} to {values[2]:.3f})"


if __name__ == "__main__":
    main()
