"""The frame around every stage: a fingerprint, a folder for work in progress, and an output that appears whole.

Work lies in OUT.partial/FINGERPRINT/ and becomes OUT by a rename; for OUT on S3 it lies in a folder of CXR_WORK_DIR (.partial
unless set), which in a pod is a volume that outlives it. On S3, run.json is uploaded last and a prefix without
it is refused by readers. The same fingerprint (params, inputs, threads, ranks) continues where a stopped run left off.
"""

import fcntl
import gc
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from components.common.errors import UserError
from components.common.runs import signals, storage

if TYPE_CHECKING:  # a packed model carries this module, and needs no parameters
    from components.common.runs.params import Section

PACKAGES = ("mlflow", "numpy", "opencv-python-headless", "pyarrow", "pydicom", "scipy", "torch", "torchvision")
RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
WORK_VARIABLE = "CXR_WORK_DIR"
"""Names the folder of work in progress whose output goes to S3."""
UPLOAD_FILE = "run.json.uploading"
"""At an S3 prefix while an output is uploaded."""

log = logging.getLogger(__name__)


@dataclass
class Job:
    """One run of one stage."""

    stage: str
    """Its name, as in the layout."""
    out: str
    """Where the finished output goes: a local path or an s3:// URI."""
    params: dict[str, Any]
    """The stage's section of params.yaml."""
    inputs: dict[str, str]
    """SHA-256 by name of input."""
    fingerprint: str
    """Identifies what the output depends on."""
    work: Path
    """Local folder of the work in progress."""
    resumed: bool
    """Whether `work` was there already."""
    lock: IO[bytes] = field(repr=False)
    """Held open: no second process works on the same output."""
    started: float = field(default_factory=time.time)
    upstream: dict[str, str] = field(default_factory=dict)
    """MLflow run id by name of input, where the input's run.json has one."""

    def publish(self, metrics: Mapping[str, float], mlflow_run_id: str | None = None, drop: tuple[str, ...] = ()) -> None:
        """Writes metrics.json and run.json and turns the work in progress into the output.

        Args:
            metrics: flat, name -> number; NaN becomes null.
            mlflow_run_id: of the run that holds the same numbers.
            drop: names in the work folder that are not part of the output, such as checkpoints.
        """
        write_json(self.work / METRICS_FILE, {name: _number(value) for name, value in metrics.items()})
        write_json(self.work / RUN_FILE, {**self._record(mlflow_run_id), "files": storage.files_below(self.work, (RUN_FILE, *drop))})
        # What is dropped goes as late as can be: a run that is stopped before the end goes on from its checkpoint.
        if storage.is_s3(self.out):
            self._upload(drop)
        else:
            with signals.deferred():
                self._remove(drop)
                replace_folder(Path(self.out), self.work)
        self._clean_up()
        log.info("%s: done in %.0f s, output in %s", self.stage, time.time() - self.started, self.out)

    def _upload(self, drop: tuple[str, ...]) -> None:
        """Replaces an earlier output on S3: what is uploaded, and what is no longer part of it, is noted there until all is done."""
        record, progress = storage.join(self.out, RUN_FILE), storage.join(self.out, UPLOAD_FILE)
        earlier = {name for uri in (record, progress) for name in _read_record(uri).get("files", [])}
        files = set(storage.files_below(self.work, drop))
        storage.write(progress, json.dumps({"stage": self.stage, "files": sorted(files | earlier)}).encode())
        storage.delete(record)
        storage.upload_folder(self.work, self.out, last=RUN_FILE, skip=drop)
        for name in sorted(earlier - files):
            storage.delete(storage.join(self.out, name))
        storage.delete(progress)

    def _remove(self, names: tuple[str, ...]) -> None:
        for name in names:
            path = self.work / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _clean_up(self) -> None:
        """Leaves nothing of this run in OUT.partial; unfinished work with other fingerprints stays."""
        shutil.rmtree(self.work, ignore_errors=True)
        for suffix in (".json", ".lock"):
            self.work.with_suffix(suffix).unlink(missing_ok=True)
        with suppress(OSError):  # not empty: others' work
            self.work.parent.rmdir()

    def _record(self, mlflow_run_id: str | None) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "params": self.params,
            "inputs": self.inputs,
            "git": git_state(),
            "packages": package_versions(),
            "python": platform.python_version(),
            "threads": threads(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 1),
            "resumed": self.resumed,
            "mlflow_run_id": mlflow_run_id,
            "upstream_mlflow_run_ids": self.upstream,
        }


def open_job(
    stage: str,
    out: str,
    params: "Section",
    inputs: dict[str, str],
    extra: Mapping[str, Any] | None = None,
    upstream: dict[str, str] | None = None,
) -> Job:
    """Prepares the work folder of a stage's run.

    Args:
        stage: its name.
        out: a local path or an s3:// URI. A local folder that is there must be an earlier output of a stage, or empty.
        params: the stage's section.
        inputs: SHA-256 by name of input.
        extra: whatever else the output depends on.
        upstream: MLflow run id by name of input.

    Raises:
        UserError: `out` is a folder with other content, or cannot be written.
    """
    _refuse_foreign(stage, out)
    values = params.model_dump(mode="json")
    depends = {"stage": stage, "params": params.defining(), "inputs": inputs, "threads": threads(), **(extra or {})}
    fingerprint = storage.digest(json.dumps(depends, sort_keys=True).encode())[:16]
    partial = _partial(out)
    work = partial / fingerprint
    resumed = work.is_dir()
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = _lock(work.with_suffix(".lock"))
        _remove_scratch(work)
        _tell_others(stage, partial, fingerprint, depends)
        write_json(work.with_suffix(".json"), depends)
    except OSError as error:
        raise UserError(f"{partial}: cannot be written ({error.strerror}); choose another --out") from None
    return Job(stage, out, values, inputs, fingerprint, work, resumed, lock, upstream=upstream or {})


def _partial(out: str) -> Path:
    """Local folder of all unfinished work on an output."""
    if storage.is_s3(out):
        return Path(os.environ.get(WORK_VARIABLE) or ".partial", quote(out, safe=""))
    return Path(f"{out.rstrip('/')}.partial")


def read_input(uri: str, name: str, made_by: str) -> tuple[dict[str, Any], str]:
    """Reads a JSON file that describes an input folder.

    Args:
        uri: the folder.
        name: the file in it, such as manifest.json.
        made_by: the stage whose output it is, for the message.

    Returns:
        Its content and its SHA-256.

    Raises:
        UserError: the folder or the file is not there, or the output is not complete.
    """
    path = storage.join(uri, name)
    if not storage.exists(path):
        raise UserError(f"{path}: not found; {uri} must be the output folder of {made_by}")
    if not storage.exists(storage.join(uri, RUN_FILE)):
        raise UserError(f"{uri}: has no {RUN_FILE}, so {made_by} has not finished; run it again")
    content = storage.read(path)
    try:
        return json.loads(content), storage.digest(content)
    except ValueError:
        raise UserError(f"{path}: not valid JSON; run {made_by} again") from None


def upstream_run_id(uri: str) -> str | None:
    """The MLflow run id in the run.json of an input folder."""
    value = json.loads(storage.read(storage.join(uri, RUN_FILE))).get("mlflow_run_id")
    return str(value) if value else None


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON with a final newline, whole or not at all."""
    storage.write(str(path), (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def threads() -> int:
    """Threads to compute with: OMP_NUM_THREADS, else the cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))


def git_state() -> dict[str, Any]:
    """The commit that this code is at, and whether it was edited since; both None outside a repository."""
    commit = os.environ.get("GIT_COMMIT") or _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no", "--", "components", "pipelines")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def package_versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parents[3]
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _number(value: float) -> float | None:
    return None if value != value else value


def _refuse_foreign(stage: str, out: str) -> None:
    """An output replaces an earlier output, never anything else."""
    if storage.is_s3(out):
        ours = any(_read_record(storage.join(out, name)).get("stage") == stage for name in (RUN_FILE, UPLOAD_FILE))
        if not ours and not storage.is_empty(out):
            raise UserError(f"{out}: holds objects that {stage} did not make; choose another --out or delete them")
        return
    if not Path(out).exists():
        return
    if not Path(out).is_dir():
        raise UserError(f"{out}: is a file; --out must be a folder")
    # DVC deletes a stage's outputs one by one before it runs: its own bookkeeping and the small files in git may remain.
    strangers = [path.name for path in Path(out).iterdir() if path.name not in (METRICS_FILE, ".gitignore")]
    if strangers and _read_record(str(Path(out, RUN_FILE))).get("stage") != stage:
        raise UserError(f"{out}: holds files that {stage} did not make; choose another --out or move them away")


def _read_record(uri: str) -> dict[str, Any]:
    """The content of a run.json, if it is one."""
    if not storage.exists(uri):
        return {}
    try:
        content = json.loads(storage.read(uri))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        return {}
    return content if isinstance(content, dict) else {}


def _tell_others(stage: str, partial: Path, fingerprint: str, depends: Mapping[str, Any]) -> None:
    """Says which earlier work is not continued, and in what it differs."""
    for record in sorted(partial.glob("*.json")):
        if record.stem == fingerprint or not (partial / record.stem).is_dir():
            continue
        mine, other = flat(depends), flat(json.loads(record.read_text()))
        names = sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))
        log.warning("%s: starts afresh; unfinished work in %s differs in %s", stage, partial / record.stem, ", ".join(names))


def _remove_scratch(work: Path) -> None:
    """Removes what a killed process was writing; the lock is ours, so nobody else is."""
    for path in work.glob(".*"):
        if path.is_file():
            path.unlink()


def _lock(path: Path) -> IO[bytes]:
    file = path.open("ab")
    for _ in range(2):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            gc.collect()  # a failed job of this very process may be kept by what its error holds in a cycle, and its lock with it
    raise UserError(f"{path}: another process is making this output; wait for it or stop it")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def replace_folder(target: Path, source: Path) -> None:
    """Puts the folder `source` where `target` is, by renames."""
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
