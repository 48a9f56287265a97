"""The work folder of a stage's run, and the output that appears whole.

Unfinished work lies in OUT.partial/FINGERPRINT/ and becomes OUT by a rename. If OUT is a folder that cannot be renamed, such as the
mount point of a volume, it lies in OUT/.partial and its files move up, run.json last. If OUT is on S3, it lies in a folder of
CXR_WORK_DIR (default: .partial), which in a pod is a volume that outlives the pod; run.json is uploaded last. Readers refuse a folder
or prefix without run.json. A run with the same fingerprint (parameters and inputs) resumes where a stopped one left off; if it
has another number of threads or processes, on which the last bits depend, the log says so.

In a pipeline, a computation that fails (RepeatingError) leaves the note FINGERPRINT.failed in OUT.partial, also on S3: a later attempt
under the same conditions ends with the same message before it begins.
"""

import fcntl
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from components.common.errors import TemporaryError, UserError, disk_errors
from components.common.formats.atomic import SCRATCH
from components.common.formats.documents import METRICS, RUN_RECORD, RunRecord, metrics_to_json, parse_json, to_json
from components.common.runs import provenance, signals, storage
from components.common.runs.cores import threads
from components.common.runs.params import Runtime, Section, flatten

WORK_VARIABLE = "CXR_WORK_DIR"  # environment variable with the folder for unfinished work whose output goes to S3
RUN_ID_FILE = "mlflow_run_id"  # file in the work folder with the id of the MLflow run, for a resumed run
ROUNDING = "rounding"  # entry of the record of unfinished work: what may change its last bits, and does not prevent it from being resumed
UPLOADING = f"{RUN_RECORD}.uploading"  # name of the note in an output while its files are uploaded or moved one by one
FAILED = ".failed"  # suffix of the note of a computation that need not be tried again
PARTIAL = ".partial"  # folder of unfinished work in an output folder that cannot be renamed
_IGNORED = (METRICS, ".gitignore", PARTIAL, "lost+found")
"""Names that an output folder may hold before the stage runs. DVC deletes the outputs of a stage one by one before it runs; its .gitignore
and the metrics in git may remain. A new ext4 volume holds lost+found."""

W = TypeVar("W", bound="Work")

log = logging.getLogger(__name__)


@dataclass
class Work:
    """The work in progress on one output."""

    stage: str
    out: str  # where the finished output goes: a local path or an s3:// URI
    params: dict[str, Any]  # the section of the stage
    runtime: dict[str, Any]  # the section `runtime`; empty for stages that do not read it
    inputs: dict[str, str]  # SHA-256 by name of input
    fingerprint: str  # hash of everything that the output depends on
    folder: Path  # local folder of the work in progress
    resumed: bool  # whether `folder` existed already
    upstream: dict[str, str] = field(default_factory=dict)  # MLflow run id by name of input, where the run record of the input has one
    started: float = field(default_factory=time.time)

    def finish(self, metrics: Mapping[str, float], mlflow_run_id: str | None = None, drop: tuple[str, ...] = ()) -> None:
        """Writes metrics.json and run.json and turns the work in progress into the output, as `StageRun.publish` describes."""
        storage.write(str(self.folder / METRICS), metrics_to_json(dict(metrics)))
        files = storage.files_below(self.folder, (RUN_RECORD, *drop))
        storage.write_json(self.folder / RUN_RECORD, self._record(mlflow_run_id, files))
        # Checkpoints are dropped as late as possible, so that a run that is stopped before the end still resumes.
        if is_fixed(self.out):
            self._publish_files(drop)
        else:
            with signals.deferred():
                _remove(self.folder, drop)
                replace_folder(_local(self.out), self.folder)
        self._clean_up()
        log.info("%s: done in %.0f s, output in %s", self.stage, time.time() - self.started, self.out)

    def _publish_files(self, drop: tuple[str, ...]) -> None:
        """Replaces an earlier output file by file. Until it is complete, a note there lists the new files and those to be deleted."""
        record, note = storage.join(self.out, RUN_RECORD), storage.join(self.out, UPLOADING)
        earlier = {name for uri in (record, note) for name in _read_record(uri).get("files", []) if ".." not in Path(name).parts}
        files = set(storage.files_below(self.folder, drop))
        storage.write(note, json.dumps({"stage": self.stage, "files": sorted(files | earlier)}).encode())
        storage.delete(record)
        storage.copy_folder(self.folder, self.out, last=RUN_RECORD, skip=drop)
        for name in sorted(earlier - files):
            storage.delete(storage.join(self.out, name))
        storage.delete(note)

    def _clean_up(self) -> None:
        """Removes the traces of this run from OUT.partial; unfinished work with other fingerprints stays."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for suffix in (".json", ".lock"):
            self.folder.with_suffix(suffix).unlink(missing_ok=True)
        storage.delete(_note(self.out, self.folder))
        with suppress(OSError):  # not empty: work with other fingerprints
            self.folder.parent.rmdir()

    def _record(self, mlflow_run_id: str | None, files: list[str]) -> RunRecord:
        return {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "params": self.params,
            "runtime": self.runtime,
            "inputs": self.inputs,
            "git": provenance.git_state(),
            "packages": provenance.package_versions(),
            "python": platform.python_version(),
            "threads": threads(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 1),
            "resumed": self.resumed,
            "mlflow_run_id": mlflow_run_id,
            "upstream_mlflow_run_ids": self.upstream,
            "files": files,
        }


@contextmanager
def open_work(
    kind: type[W],
    stage: str,
    out: str,
    params: Section,
    inputs: Mapping[str, str],
    runtime: Runtime | None = None,
    depends: Mapping[str, Any] | None = None,
    rounding: Mapping[str, Any] | None = None,
    upstream: Mapping[str, str] | None = None,
) -> Iterator[W]:
    """Prepares and locks the work folder of a stage's run, as `stage_run` describes; the lock is released at the end of the block."""
    _refuse_foreign(stage, out)
    rounds = {"threads": threads(), **(rounding or {}), **{name: params.values()[name] for name in params.rounding()}}
    decides = {name: value for name, value in params.values().items() if name not in rounds}
    depends = {"stage": stage, "params": decides, "inputs": dict(inputs), **(depends or {})}
    fingerprint = storage.digest(json.dumps(depends, sort_keys=True).encode())[:16]
    partial = partial_folder(out)
    folder = partial / fingerprint
    resumed = folder.is_dir()
    recorded = runtime.values() if runtime else {}
    note, conditions = _note(out, folder), {ROUNDING: rounds, "runtime": recorded}
    _refuse_repetition(note, conditions)
    work = kind(stage, out, params.values(), recorded, dict(inputs), fingerprint, folder, resumed, dict(upstream or {}))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(".lock").open("ab")
    except OSError as error:
        raise UserError(f"{partial}: cannot be written ({error.strerror}); choose another --out") from None
    with lock, disk_errors(folder, tempfile.gettempdir()):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TemporaryError(f"{lock.name}: another process is making this output; wait for it or stop it") from None
        _remove_scratch(folder)
        _report_other_work(stage, partial, fingerprint, depends)
        _report_rounding(stage, folder, rounds)
        storage.write_json(folder.with_suffix(".json"), {**depends, ROUNDING: rounds})
        try:
            yield work
        except UserError as error:
            if error.repeats and _in_pipeline():
                with suppress(UserError, OSError):  # must not hide the error
                    storage.write(note, to_json({**conditions, "error": str(error)}))
            raise
        finally:
            _remove_scratch(folder)


def partial_folder(out: str) -> Path:
    """Returns the local folder of all unfinished work on an output."""
    if storage.is_s3(out):
        return Path(os.environ.get(WORK_VARIABLE) or ".partial", quote(out, safe=""))
    return _local(out) / PARTIAL if is_fixed(out) else Path(f"{_local(out)}.partial")


def _note(out: str, folder: Path) -> str:
    """Returns where the note of a failed computation is: beside the work folder, or on S3, since a pod may have a folder of its own."""
    return f"{out.rstrip('/')}.partial/{folder.name}{FAILED}" if storage.is_s3(out) else str(folder.with_suffix(FAILED))


def _refuse_repetition(note: str, conditions: Mapping[str, Any]) -> None:
    """Raises the error of an earlier attempt of a pipeline under the same conditions, if it would only be repeated."""
    found = _read_record(note) if _in_pipeline() else {}
    message = found.pop("error", None)
    if message and found == conditions:
        remedy = f"change the parameters, the inputs or the code, or delete {note}"
        raise UserError(f"{message} (an earlier attempt ended so, and another would, too: {remedy})")


def _in_pipeline() -> bool:
    return bool(os.environ.get(provenance.KFP_VARIABLE))


def is_fixed(out: str) -> bool:
    """Whether an output is published file by file: on S3, or in an existing folder that cannot be replaced by a rename.

    Such are mount points, the current folder and those above it, and folders whose parent this user may not write.
    """
    if storage.is_s3(out):
        return True
    folder = Path(out).resolve()
    if not folder.is_dir():
        return False
    return folder in _mount_points() or Path.cwd().is_relative_to(folder) or not os.access(folder.parent, os.W_OK)


def _mount_points() -> set[Path]:
    """Returns all mount points, bind mounts among them: the fifth field of mountinfo, with spaces and the like in octal (proc(5))."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return {Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split()[4])) for line in lines}


def _local(out: str) -> Path:
    """Returns the path of a local output, which is that of the target if `out` is a link, so that the link stays."""
    path = Path(out)
    return path.resolve() if path.is_symlink() or path.name in ("", "..") else path


def replace_folder(target: Path, source: Path) -> None:
    """Moves the folder `source` to where `target` is, by renames."""
    old = source.with_suffix(".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        source.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _refuse_foreign(stage: str, out: str) -> None:
    """Refuses to replace anything but an earlier output of the stage."""
    if storage.is_s3(out):
        if not _is_ours(stage, out) and not storage.is_empty(out):
            raise UserError(f"{out}: holds objects that {stage} did not make; choose another --out or delete them")
        return
    if not Path(out).exists():
        return
    if not Path(out).is_dir():
        raise UserError(f"{out}: is a file; --out must be a folder")
    if any(path.name not in _IGNORED for path in Path(out).iterdir()) and not _is_ours(stage, out):
        raise UserError(f"{out}: holds files that {stage} did not make; choose another --out or move them away")


def _is_ours(stage: str, out: str) -> bool:
    """Whether an output, complete or being published, is of the stage."""
    return any(_read_record(storage.join(out, name)).get("stage") == stage for name in (RUN_RECORD, UPLOADING))


def _read_record(uri: str) -> dict[str, Any]:
    """Returns the content of a run record, or nothing if it is not one."""
    if not storage.exists(uri):
        return {}
    content = storage.read(uri)
    try:
        return parse_json(content, uri, "")
    except UserError:
        return {}


def _report_other_work(stage: str, partial: Path, fingerprint: str, depends: Mapping[str, Any]) -> None:
    """Logs which unfinished work is not resumed, and in what it differs."""
    for record in sorted(partial.glob("*.json")):
        if record.stem == fingerprint or not (partial / record.stem).is_dir():
            continue
        mine, other = flatten(depends), flatten({name: value for name, value in _read_record(str(record)).items() if name != ROUNDING})
        names = sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))
        log.warning("%s: starts afresh; unfinished work in %s differs in %s", stage, partial / record.stem, ", ".join(names))


def _report_rounding(stage: str, folder: Path, rounds: Mapping[str, Any]) -> None:
    """Logs if unfinished work is resumed under other conditions, so that its last bits will differ from those of a run in one go."""
    earlier = _read_record(str(folder.with_suffix(".json"))).get(ROUNDING, {})
    changes = [f"{name} {rounds.get(name)} instead of {value}" for name, value in earlier.items() if rounds.get(name) != value]
    if changes:
        log.info("%s: resumes with %s; the result may differ in the last bits", stage, ", ".join(changes))


def _remove_scratch(folder: Path) -> None:
    """Removes files that were being written when an error or a signal ended that; nobody else is writing, since we hold the lock."""
    for path in folder.rglob(SCRATCH):
        if path.is_file():
            path.unlink()
