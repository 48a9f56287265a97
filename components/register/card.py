"""The model card: what users and auditors should know of a model, from a template (card.md) and the files of the stages."""

from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

from components.register.candidate import METRIC, Candidate
from components.register.packing import MODEL_URI

TEMPLATE = Path(__file__).with_name("card.md")
SUBGROUP = f"{METRIC}_"
ROWS = {
    "train_images": "images trained on",
    "classify_val_images": "validation images",
    "classify_val_patients": "validation patients",
    "classify_test_images": "test images",
    "classify_test_patients": "test patients",
}


def render(candidate: Candidate, name: str, licence: str, earlier: list[dict[str, Any]]) -> str:
    """The card, in Markdown.

    Args:
        candidate: what is registered.
        name: of the registered model.
        licence: terms of use.
        earlier: number, aliases, value (macro AUROC) and reason of the versions so far, newest first.
    """
    about = candidate.description
    preprocessing = about.get("preprocessing", {})
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=name,
        uri=MODEL_URI,
        arch=about["arch"],
        findings=", ".join(about["findings"]),
        classes=len(about["findings"]),
        size=about["size"],
        views=", ".join(preprocessing.get("views", ["PA", "AP"])),
        mean=f"{about['normalisation']['mean']:.6g}",
        std=f"{about['normalisation']['std']:.6g}",
        mirrored=" of the mean of the logits of an image and its mirror image" if about.get("tta_flip") else "",
        temperature=f"{about.get('temperature', 1.0):.6g}",
        data=_table(("", "number"), ((text, _count(candidate, name)) for name, text in ROWS.items())),
        preprocessing=_listing(preprocessing) or f"size {about['size']}, bits {about['bits']}",
        digests=_listing(about.get("inputs", {})) or "not recorded",
        results=_results(candidate),
        subgroups=_subgroups(candidate.metrics),
        training=_training(candidate.record),
        licence=licence,
        history=_history(earlier),
    )


def _count(candidate: Candidate, name: str) -> str:
    value = candidate.training.get(name, candidate.metrics.get(name))
    return "not recorded" if value is None else f"{value:g}"


def _results(candidate: Candidate) -> str:
    """Macro average and each finding, with intervals."""
    metrics, rows = candidate.metrics, [("**macro average**", METRIC, "")]
    for finding in candidate.description["findings"]:
        key = candidate.key(finding)
        positives, negatives = (metrics.get(f"classify_test_{kind}_{key}") for kind in ("positives", "negatives"))
        shown = "" if positives is None or negatives is None else f"{positives:g} / {negatives:g}"
        rows.append((finding, f"classify_test_auroc_{key}", shown))
    table = _table(("finding", "AUROC (95 % interval)", "positives / negatives"), ((n, interval(metrics, k), c) for n, k, c in rows))
    return f"{table}\n\nIntervals by bootstrap over patients; everything was chosen on the validation split."


def _subgroups(metrics: dict[str, float | None]) -> str:
    """Macro AUROC by group, where evaluate has told groups apart."""
    keys = [key for key in metrics if key.startswith(SUBGROUP) and not key.endswith(("_low", "_high"))]
    if not keys:
        return "Subgroups were not told apart."
    return "By subgroup:\n\n" + _table(("group", "macro AUROC"), ((key.removeprefix(SUBGROUP), interval(metrics, key)) for key in keys))


def interval(metrics: dict[str, float | None], key: str) -> str:
    """A metric with the ends of its interval, as far as they are known."""
    estimate, low, high = (metrics.get(name) for name in (key, f"{key}_low", f"{key}_high"))
    if estimate is None:
        return "not known"
    return f"{estimate:.3f}" + ("" if low is None or high is None else f" ({low:.3f} to {high:.3f})")


def _training(record: dict[str, Any]) -> str:
    git, packages = record.get("git", {}), record.get("packages", {})
    facts = {
        "code": f"commit {git.get('commit') or 'unknown'}{', edited since' if git.get('dirty') else ''}",
        "parameters": _listing(record.get("params", {})),
        "packages": _listing(packages),
        "threads": record.get("threads"),
        "MLflow run": record.get("mlflow_run_id"),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)


def _history(earlier: list[dict[str, Any]]) -> str:
    if not earlier:
        return "None: this is the first."
    rows = ((one["number"], one["aliases"] or "-", one["value"] or "-", one["reason"] or "-") for one in earlier)
    return _table(("version", "alias when this card was written", "macro AUROC", "why"), rows)


def _listing(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
