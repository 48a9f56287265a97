"""Evaluate a backbone by the protocols of the field: linear probe, nearest neighbours and fine-tuning, with 1, 10 and 100 % of the labels.

    python -m benchmarks.protocols --shards DIR --backbone DIR --out DIR [--fractions 0.01 0.1 1] [--params FILE]
        [--set section.key=value ...]

Prints a table of Markdown; the page of `evaluate`, OUT/evaluation/report.html, has all figures. Outputs that exist already are reused.
"""

from benchmarks import stages
from benchmarks.stages import overrides, read_json, with_interval

MODES = {"linear": "linear probe", "knn": "nearest neighbours", "finetune": "fine-tuning"}


def main() -> None:
    """Run classify with every mode and fraction, and evaluate them on one page."""
    parser = stages.parser(__doc__ or "")
    parser.add_argument("--shards", required=True, help="output folder of preprocess")
    parser.add_argument("--backbone", help="output folder of pretrain; without it the weights are random")
    parser.add_argument("--fractions", type=float, nargs="+", default=(0.01, 0.1, 1.0), help="fractions of the training patients")
    options = parser.parse_args()
    common = ["--params", options.params, *overrides(options.set)]
    backbone = ["--backbone", options.backbone] if options.backbone else []
    cells = [(mode, fraction) for mode in MODES for fraction in options.fractions]
    folders = [options.out / mode / f"{fraction:g}" for mode, fraction in cells]
    for (mode, fraction), folder in zip(cells, folders, strict=True):
        settings = overrides([f"classify.mode={mode}", f"classify.label_fraction={fraction:g}"])
        stages.run_once(["classify", "--shards", options.shards, *backbone, *common, *settings], folder)
    page = options.out / "evaluation"
    stages.run(["evaluate", "--predictions", *map(str, folders), "--out", str(page), *common])
    metrics = read_json(page / "metrics.json")
    prefixes = ["classify", *(f"classify_{number}" for number in range(2, len(cells) + 1))]
    found = {cell: with_interval(metrics, f"{prefix}_test_auroc_macro") for cell, prefix in zip(cells, prefixes, strict=True)}
    images = {
        fraction: read_json(options.out / "linear" / f"{fraction:g}" / "metrics.json")["train_images"] for fraction in options.fractions
    }
    print(f"| macro AUROC (interval) | {' | '.join(f'{fraction:.4g} ({count} images)' for fraction, count in images.items())} |")
    print("|---|" + "---|" * len(images))
    for mode, name in MODES.items():
        print(f"| {name} | {' | '.join(found[mode, fraction] for fraction in options.fractions)} |")


if __name__ == "__main__":
    main()
