"""The model card: what users and auditors should know of a model, from templates (cards/) and the files of the stages."""

from pathlib import Path
from string import Template
from typing import Any

from components.register.candidate import Candidate
from components.register.markdown import listing, table
from components.register.packing import MODEL_URI
from components.register.task import TASKS

TEMPLATES = Path(__file__).parents[1]
REST = "register/card.md"
"""Of the cards of all tasks: data, results, training, licence and history."""
VIEWS = ("PA", "AP")


def render(candidate: Candidate, name: str, licence: str, earlier: list[dict[str, Any]]) -> str:
    """The card, in Markdown.

    Args:
        candidate: what is registered.
        name: of the registered model.
        licence: terms of use.
        earlier: number, aliases, value (of the task's metric) and reason of the versions so far, newest first.
    """
    about, task = candidate.description, TASKS[candidate.task]
    preprocessing = about.get("preprocessing", {})
    slots = {
        "name": name,
        "uri": MODEL_URI,
        "views": ", ".join(preprocessing.get("views", VIEWS)),
        "mean": f"{about['normalisation']['mean']:.6g}",
        "std": f"{about['normalisation']['std']:.6g}",
        "preprocessing": listing(preprocessing) or f"size {about.get('stored_size', about['size'])}, bits {about['bits']}",
        "digests": listing(about.get("inputs", {})) or "not recorded",
        "training": _training(candidate.record),
        "licence": licence,
        "history": _history(earlier, task.MEASURE),
        **task.slots(candidate),
    }
    templates = [(TEMPLATES / file).read_text(encoding="utf-8") for file in (f"{candidate.task}/card.md", REST)]
    return Template("\n".join(templates)).substitute(slots)


def _training(record: dict[str, Any]) -> str:
    git, packages = record.get("git", {}), record.get("packages", {})
    facts = {
        "code": f"commit {git.get('commit') or 'unknown'}{', edited since' if git.get('dirty') else ''}",
        "parameters": listing(record.get("params", {})),
        "packages": listing(packages),
        "threads": record.get("threads"),
        "MLflow run": record.get("mlflow_run_id"),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)


def _history(earlier: list[dict[str, Any]], measure: str) -> str:
    if not earlier:
        return "None: this is the first."
    rows = ((one["number"], one["aliases"] or "-", one["value"] or "-", one["reason"] or "-") for one in earlier)
    return table(("version", "alias when this card was written", measure, "why"), rows)
