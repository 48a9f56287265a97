"""Evaluation of a classifier: columns score_F and target_F for each finding F in model.json."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from components.classify import external, report, subgroups
from components.classify.metrics import CALIBRATION, METRICS, PAIRED, ClassificationSplit, Findings, evaluate
from components.classify.subgroups import Subgroup
from components.common.errors import UserError
from components.common.formats.documents import mlflow_key
from components.common.formats.labels import LABELS
from components.common.formats.model import DESCRIPTION, External
from components.common.formats.predictions import PREDICTIONS, matrix, rows_of, score_column, target_column
from components.common.head import CsvTable, HeadOutput
from components.common.runs.params import Evaluate
from components.common.statistics.arrays import has_both
from components.common.statistics.bootstrap import patient_indices
from components.common.statistics.curves import thin
from components.common.statistics.differences import Difference, paired_differences
from components.common.statistics.intervals import Interval, first_clash

NAMES = {
    "auroc": "AUROC",
    "ap": "average precision",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "brier": "Brier score",
}


def read(table: pa.Table, model: HeadOutput, params: Evaluate) -> "Classification":
    """Evaluates the predictions of one classifier; raises UserError if columns are missing or hold what they must not."""
    names = _names(table, model)
    table = table.sort_by("image_id")  # so that models tested on the same images have them in the same order
    val, test = (_split(rows_of(table, split), split, names, model.path(PREDICTIONS)) for split in ("val", "test"))
    elsewhere: External | None = model.description.get("external")
    found = evaluate(names, val, test, params, external.thresholds(names, elsewhere) if elsewhere else None)
    return Classification(model, params, found, subgroups.evaluate(rows_of(table, "test"), found, params))


@dataclass(frozen=True)
class Classification:
    """The evaluation of one classifier."""

    model: HeadOutput
    params: Evaluate
    findings: Findings
    subgroups: list[Subgroup]

    def metrics(self, prefix: str = "classify") -> dict[str, float]:
        """Returns flat numbers for metrics.json."""
        found = self.findings
        flat = {f"{prefix}_val_auroc_macro": found.val_auroc_macro, f"{prefix}_test_findings_counted": float(len(found.counted))}
        for name, split in (("val", found.val), ("test", found.test)):
            flat |= {f"{prefix}_{name}_images": len(split.targets), f"{prefix}_{name}_patients": split.patient_count}
        flat[f"{prefix}_test_ece_macro"] = found.ece_macro
        for metric in METRICS:
            flat |= found.macro[metric].flat(f"{prefix}_test_{metric}_macro")
        for finding in found.each:
            key = mlflow_key(finding.name)
            for metric in (*METRICS, *CALIBRATION):
                flat |= finding.intervals[metric].flat(f"{prefix}_test_{metric}_{key}")
            positives, negatives, _ = finding.counts["test"]
            flat |= {f"{prefix}_test_positives_{key}": positives, f"{prefix}_test_negatives_{key}": negatives}
            flat |= {f"{prefix}_test_ece_{key}": finding.reliability.error, f"{prefix}_val_threshold_{key}": finding.threshold}
        for group in self.subgroups:
            flat |= group.macro.flat(f"{prefix}_test_auroc_macro_{mlflow_key(f'{group.attribute}_{group.value}')}")
        return flat

    def headline(self) -> dict[str, Interval]:
        """Returns macro averages, and the AUROC of each finding."""
        macro = {f"Macro {NAMES[metric]}": self.findings.macro[metric] for metric in METRICS}
        return macro | {f"AUROC, {finding.name}": finding.intervals["auroc"] for finding in self.findings.each}

    def curves(self) -> dict[str, CsvTable]:
        """Returns ROC, precision-recall and reliability curves, and the subgroups."""
        each = self.findings.each
        roc = [(finding.name, *point) for finding in each if finding.roc for point in _rounded(thin(finding.roc))]
        pr = [(finding.name, *point) for finding in each if finding.pr for point in _rounded(thin(finding.pr))]
        bins = [
            (finding.name, *_rounded([(score, share)])[0], int(images))
            for finding in each
            for score, share, images in zip(*finding.reliability[:3], strict=True)
        ]
        return {
            "roc.csv": CsvTable(("finding", "fpr", "tpr"), roc),
            "pr.csv": CsvTable(("finding", "recall", "precision"), pr),
            "reliability.csv": CsvTable(("finding", "score", "share", "images"), bins),
            "subgroups.csv": subgroups.points(self.subgroups),
        }

    def sections(self) -> list[Markup]:
        """Renders the sections of the report on this model."""
        return report.sections(self.findings, self.subgroups, self.params, self.model.description.get("external"))

    def warnings(self) -> list[str]:
        """Returns warnings about findings and groups that are too small to judge."""
        few = self.params.min_positives
        lacking = f"no finding has {few} positives and as many negatives in the test split: no macro average"
        seen = (self.model.description.get("external") or {}).get("seen")
        repeated = [f"{seen} images are in the model's training cohort, so that it looks better than on others"] if seen else []
        return repeated + ([] if self.findings.counted else [lacking]) + subgroups.warnings(self.subgroups, few)

    def compare(self, baseline: "Classification") -> list[Difference]:
        """Compares AUROC and average precision: the macro average alone, the findings with Holm's correction."""
        self._check_comparable(baseline)
        differences = []
        for metric in PAIRED:
            differences += self._macro_difference(metric, baseline)
            differences += self._finding_differences(metric, baseline)
        return differences

    def _check_comparable(self, baseline: "Classification") -> None:
        mine, theirs = self.findings.test, baseline.findings.test
        where = f"{self.model.folder} and {baseline.model.folder} cannot be compared"
        if [finding.name for finding in self.findings.each] != [finding.name for finding in baseline.findings.each]:
            raise UserError(f"{where}: they have other findings; train both on the same shards")
        if not np.array_equal(mine.image_ids, theirs.image_ids):
            common = len(np.intersect1d(mine.image_ids, theirs.image_ids))
            counts = f"{len(mine.image_ids)} and {len(theirs.image_ids)} test images, {common} in common"
            raise UserError(f"{where}: {counts}; train both on the same shards")
        if not np.array_equal(mine.targets, theirs.targets, equal_nan=True):
            raise UserError(f"{where}: their test labels differ; train both on the same shards")

    def _macro_difference(self, metric: str, baseline: "Classification") -> list[Difference]:
        counted = has_both(self.findings.test.targets, self.params.min_positives)
        if not counted.any():
            return []
        estimate = float(self._estimates(metric, baseline)[counted].mean())
        samples = self._samples(metric, baseline)[:, counted].mean(axis=1)
        return paired_differences([(f"{metric}_macro", f"Macro {NAMES[metric]}")], [estimate], samples[None], self.params.confidence)

    def _finding_differences(self, metric: str, baseline: "Classification") -> list[Difference]:
        counted = [index for index, finding in enumerate(self.findings.each) if finding.counted]
        name = NAMES[metric][:1].upper() + NAMES[metric][1:]
        found = [self.findings.each[index].name for index in counted]
        estimates, samples = self._estimates(metric, baseline), self._samples(metric, baseline)
        names = [(f"{metric}_{mlflow_key(finding)}", f"{name}, {finding}") for finding in found]
        return paired_differences(names, estimates[counted], samples[:, counted].T, self.params.confidence)

    def _samples(self, metric: str, baseline: "Classification") -> Any:
        """Returns (B, F) differences. Both models have the same patients and seed, and so the same resamples."""
        return self.findings.samples[metric] - baseline.findings.samples[metric]

    def _estimates(self, metric: str, baseline: "Classification") -> Any:
        mine, theirs = ([finding.intervals[metric].estimate for finding in each.findings.each] for each in (self, baseline))
        return np.array(mine) - np.array(theirs)


def _names(table: pa.Table, model: HeadOutput) -> list[str]:
    description = model.path(DESCRIPTION)
    findings = model.description.get("findings")
    if not isinstance(findings, list) or not findings:
        raise UserError(f"{description}: names no findings; run classify again")
    wanted = [column(finding) for finding in findings for column in (score_column, target_column)]
    if missing := [column for column in wanted if column not in table.column_names]:
        raise UserError(f"{description}: its findings need the column {missing[0]}, which {PREDICTIONS} lacks; run classify again")
    names = [str(finding) for finding in findings]
    if clash := first_clash(names, reserved=("macro",)):
        raise UserError(f"finding {clash}: its metrics would have the names of others; rename its column in {LABELS}")
    return names


def _split(rows: pa.Table, name: str, findings: list[str], source: str) -> ClassificationSplit:
    scores = matrix(rows, [score_column(finding) for finding in findings])
    targets = matrix(rows, [target_column(finding) for finding in findings])
    if not ((scores >= 0) & (scores <= 1)).all():
        raise UserError(f"{source}: the {name} split has scores that are not probabilities; run classify again")
    if not (np.isnan(targets) | np.isin(targets, (0, 1))).all():
        raise UserError(f"{source}: the {name} split has targets other than 1, 0 and unknown; run classify again")
    if name == "test" and np.isnan(targets).all():
        raise UserError(f"{source}: no patient of the test split has a known label; add {LABELS} and run preprocess again")
    image_ids = np.array(rows["image_id"].to_pylist(), dtype=np.str_)
    return ClassificationSplit(targets, scores, patient_indices(rows["patient_id"].to_pylist()), image_ids)


def _rounded(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(round(x, 6), round(y, 6)) for x, y in points]
