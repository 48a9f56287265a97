"""The command `clean`: deletes outputs that nothing depends on."""

import argparse
import math
import re
import time
from pathlib import Path

from tqdm import tqdm

from components.common.errors import UserError
from components.common.runs import storage
from components.common.runs.tracking import PIPELINE
from pipelines import outputs
from pipelines.outputs import Found
from pipelines.retention import Lineage, keep
from pipelines.settings import EXAMPLE, Settings

DAY = 86400.0
UPDATE_SECONDS = 30.0  # how often MLflow is asked for new runs, which may need what is about to be deleted


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Runs the command `clean`."""
    days = _days(options.older_than)
    root = _root(options, settings)
    lineage = Lineage()  # first: without MLflow nothing is deleted
    found = outputs.find(root)
    lineage.update()  # since listing takes time
    since = _now() - days * DAY
    reasons = keep(found, lineage, since)
    if options.dry_run:
        _print(found, reasons)
        return 0
    _delete([each for each in found if each.path not in reasons], found, lineage, since)
    return 0


def _days(text: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,4})([dw])", text)
    if not match:
        raise UserError(f"--older-than {text}: must be days or weeks, such as 90d or 12w, at least 1d")
    return int(match[1]) * (7 if match[2] == "w" else 1)


def _root(options: argparse.Namespace, settings: Settings) -> str:
    if options.root:
        return options.root.rstrip("/") if storage.is_s3(options.root) else str(Path(options.root).resolve())
    if Path(options.settings) == EXAMPLE:
        raise UserError("--root: is missing; give the folder or prefix of all outputs, or the --settings that name it")
    return settings.root


def _print(found: list[Found], reasons: dict[str, str]) -> None:
    for each in found:
        what = f"keep    {_describe(each)}: {reasons[each.path]}" if each.path in reasons else f"delete  {_describe(each)}"
        print(what)
    old = [each for each in found if each.path not in reasons]
    print(f"{_sum(old)} would be deleted, {_sum([each for each in found if each.path in reasons])} kept")


def _delete(old: list[Found], found: list[Found], lineage: Lineage, since: float) -> None:
    """Deletes outputs, the youngest first, so that none is left without its inputs; asks MLflow for new runs now and then."""
    asked, reasons, deleted = time.monotonic(), dict[str, str](), list[Found]()
    _refuse_open_pipelines(lineage)
    with tqdm(total=sum(each.size for each in old), desc="deleting", unit="B", unit_scale=True, disable=None) as progress:
        for each in sorted(old, key=lambda one: one.changed, reverse=True):
            if time.monotonic() - asked > UPDATE_SECONDS:
                lineage.update()
                _refuse_open_pipelines(lineage)
                asked, reasons = time.monotonic(), keep(found, lineage, since)
            reason = reasons.get(each.path) or each.delete()
            if not reason:
                deleted.append(each)
            tqdm.write(f"kept {each.path}: {reason}" if reason else f"deleted {_describe(each)}")
            progress.update(each.size)
    print(f"{_sum(deleted)} deleted")


def _refuse_open_pipelines(lineage: Lineage) -> None:
    """Raises UserError while a pipeline runs: Kubeflow's cache may give its next step any output, before MLflow knows of that step."""
    for run in lineage.open():
        if run.data.tags.get("stage") == PIPELINE:
            remedy = f"wait for its end, or, if it was lost, `mlflow runs delete --run-id {run.info.run_id}`"
            raise UserError(f"the pipeline run {run.info.run_name} is open in MLflow, and may take any output from the cache; {remedy}")


def _describe(each: Found) -> str:
    age = (_now() - each.changed) / DAY
    return f"{_size(each.size)}  {age:5.0f} d  {each.path}{' (unfinished)' if each.unfinished else ''}"


def _sum(found: list[Found]) -> str:
    return f"{len(found)} outputs, {_size(sum(each.size for each in found)).strip()}"


def _size(count: float) -> str:
    power = min(int(math.log10(max(count, 1)) // 3), 4)
    return f"{count / 1000**power:6.1f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _now() -> float:
    return time.time()
