"""The model card for users and auditors, from the templates HEAD/card.md and register/card.md.

It begins with YAML for programs, in the format of the Hugging Face Hub (model-index); model.json beside it has all metrics.
"""

from pathlib import Path
from string import Template
from typing import Any

import yaml

from components.common.head import Candidate
from components.common.html.markdown import escape, joined, listing, table
from components.heads import HEADS
from components.register.packing import MODEL_URI

TEMPLATES = Path(__file__).parents[1]
COMMON = "register/card.md"  # the part that all heads have: data, results, training, licence and history
VIEWS = ("PA", "AP")


def render(candidate: Candidate, name: str, licence: str, earlier: list[dict[str, Any]]) -> str:
    """Renders the card in Markdown; `earlier` are number, aliases, metric and reason of the versions so far, newest first."""
    about, registration = candidate.description, HEADS[candidate.head].registration
    preprocessing = about.get("preprocessing", {})
    values = {
        "name": escape(name),
        "uri": MODEL_URI,
        "views": joined(preprocessing.get("views", VIEWS)),
        "mean": f"{about['normalisation']['mean']:.6g}",
        "std": f"{about['normalisation']['std']:.6g}",
        "preprocessing": listing(preprocessing) or f"size {about['size']}, bits {about['bits']}",
        "digests": listing(about.get("inputs", {})) or "not recorded",
        "training": _training(candidate.record),
        "licence": licence,
        "history": _history(earlier, registration.MEASURE),
        **registration.card_values(candidate),
    }
    templates = [(TEMPLATES / file).read_text(encoding="utf-8") for file in (f"{candidate.head}/card.md", COMMON)]
    return _front_matter(candidate, name) + Template("\n".join(templates)).substitute(values)


def _front_matter(candidate: Candidate, name: str) -> str:
    """Returns the headline metric with its interval as the Hub's model-index."""
    about, registration = candidate.description, HEADS[candidate.head].registration
    bounds = {"": "", "_low": ", lower end of the 95 % interval", "_high": ", upper end of the 95 % interval"}
    values = {text: candidate.metrics.get(f"{registration.METRIC}{end}") for end, text in bounds.items()}
    result = {
        "task": {"type": registration.TASK_TYPE},
        "dataset": {"type": "chest-radiographs", "name": "Chest radiographs of the training cohort", "split": "test"},
        "metrics": [
            {"type": registration.METRIC_TYPE, "name": f"{registration.MEASURE}{text}", "value": value}
            for text, value in values.items()
            if value is not None
        ],
    }
    content = {
        "license": "other",
        "license_name": "terms-in-this-card",
        "pipeline_tag": registration.TASK_TYPE,
        "tags": ["chest-radiograph", candidate.head, about["arch"]],
        "model-index": [{"name": name, "results": [result] if result["metrics"] else []}],
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n\n"


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
