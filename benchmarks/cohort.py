"""Run the stages on a cohort of real files, and print their results and durations as Markdown.

docs/results.md quotes the output. The key for pseudonyms comes from the environment.

    export CXR_PSEUDONYM_KEY=...
    python -m benchmarks.cohort --raw DIR --out DIR [--params FILE] [--set section.key=value ...]
"""

from typing import Any

from benchmarks import stages
from benchmarks.stages import overrides, read_json, with_interval


def main() -> None:
    """Run preprocess, pretrain, classify with and without the backbone, and evaluate."""
    parser = stages.parser(__doc__ or "")
    parser.add_argument("--raw", required=True, help="folder of DICOM, PNG or JPEG files")
    options = parser.parse_args()
    common = ["--params", options.params, *overrides(options.set)]
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
    seconds = {name: stages.run([*command, *common]).wall for name, command in commands.items()}
    files = ("shards/manifest.json", "evaluation/metrics.json", "backbone/metrics.json")
    manifest, metrics, pretrained = (read_json(options.out / name) for name in files)
    print(page(manifest, metrics, pretrained, seconds))


def page(manifest: dict[str, Any], metrics: dict[str, Any], pretrained: dict[str, Any], seconds: dict[str, float]) -> str:
    """Return the counts and the tables."""
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
            f"| {name} | {' | '.join(with_interval(metrics, f'{model}_test_auroc_{name}') for model in ('classify', 'classify_2'))} |"
            for name in ["macro", *manifest["findings"]]
        ),
        "",
        "| end of pretraining | |",
        "|---|---:|",
        *(f"| {name} | {value:.3f} |" for name, value in pretrained.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
