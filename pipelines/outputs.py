"""The outputs of stages below a folder or prefix, unfinished work, and how both are deleted.

An output is a folder with a run.json that this project wrote and that lists its files. Nothing else is touched: no other folder, no file
that the list lacks, nothing behind a link. run.json goes first, since a folder that has it is complete; the note that takes its place
lists the files, as it does while an output is published (components/common/runs/work.py). If the deletion is interrupted, the next one
finds the note and goes on, and a stage may publish to the folder at any time.
"""

import fcntl
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from tqdm import tqdm

from components.common.errors import UserError, disk_errors
from components.common.formats.documents import RUN_RECORD, RunRecord, check_document, parse_json, to_json
from components.common.formats.predictions import PREDICTIONS
from components.common.runs import storage
from components.common.runs.local_files import Entry, walk_without_links
from components.common.runs.work import FAILED, PARTIAL, UPLOADING, partial_folder

REQUIRED = ("stage", "fingerprint", "files", "inputs", "upstream_mlflow_run_ids", "started", "seconds")
DELETING = "deleting"  # entry of the note in an output that is being deleted
_IDENTIFYING = (".json", ".safetensors", PREDICTIONS)
"""Ends of the names of files by whose SHA-256 other stages name an output as their input."""
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_PARALLEL = 16

T = TypeVar("T")


@dataclass
class Found:
    """An output, or unfinished work on one."""

    path: str  # relative to the root
    size: int  # bytes
    changed: float  # when it was finished or last changed, in seconds since 1970
    keep: str = ""  # why it cannot be deleted, whatever depends on it
    run_id: str | None = None  # its MLflow run
    provides: set[str] = field(default_factory=set)  # by what others name it: MLflow run id, fingerprint, SHA-256 of files, address
    needs: set[str] = field(default_factory=set)  # the same of its inputs
    stage: str = ""
    begun: bool = False  # whether its deletion was interrupted
    unfinished: bool = False
    delete: Callable[[], str] = lambda: ""
    """Deletes it and returns an empty text, or why it is left as it is."""


def find(root: str) -> list[Found]:
    """Finds everything below a local folder or an s3:// prefix that may be deleted, or is kept for a reason; sorted by path.

    Raises:
        UserError: it does not exist or cannot be read.
    """
    if not storage.is_s3(root) and not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; give the folder or prefix of all outputs with --root")
    listed = storage.walk(root) if storage.is_s3(root) else walk_without_links(root)
    outputs: dict[str, dict[str, Entry]] = {}
    works: dict[str, list[Entry]] = defaultdict(list)
    entries = [(PurePosixPath(entry.path), entry) for entry in tqdm(listed, "listing", unit="file", disable=None)]
    entries = [(path, entry) for path, entry in entries if str(path) == entry.path]  # keys such as a//b are not of this project
    for path, _ in entries:
        if path.name in (RUN_RECORD, UPLOADING) and not _partial(path):
            outputs[_text(path.parent)] = {}
    for path, entry in entries:
        if partial := _partial(path):
            works[partial].append(entry)
            continue
        for folder in path.parents:
            if _text(folder) in outputs:
                outputs[_text(folder)][_text(path.relative_to(folder))] = entry
    found = _together(outputs.items(), lambda item: _output(root, *item), "reading")
    if not storage.is_s3(root):  # on S3 there are notes of failures only
        found += [work for partial, files in works.items() for work in _works(root, partial, files)]
    return sorted(filter(None, found), key=lambda each: each.path)


def _together(items: Iterable[T], work: Callable[[T], Any], title: str = "") -> list[Any]:
    """Calls a function for each item, several at a time; a title shows the progress."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        calls = [pool.submit(work, item) for item in items]
        try:
            return [call.result() for call in tqdm(calls, title, disable=None if title else True)]
        finally:
            pool.shutdown(cancel_futures=True)


def _partial(path: PurePosixPath) -> str:
    """Returns the uppermost folder of unfinished work that a file lies in; empty if it lies in none."""
    above = [folder for folder in reversed(path.parents) if folder.name.endswith(PARTIAL)]
    return _text(above[0]) if above else ""


def _text(path: PurePosixPath) -> str:
    return "" if str(path) == "." else str(path)


def _output(root: str, path: str, files: dict[str, Entry]) -> Found:
    """Describes the output in a folder."""
    uri = storage.join(root, path) if path else root
    found = Found(path or ".", sum(entry.size for entry in files.values()), max(entry.modified for entry in files.values()))
    marker = RUN_RECORD if RUN_RECORD in files else UPLOADING
    marked = storage.read(storage.join(uri, marker))
    found.unfinished = marker == UPLOADING
    try:
        record = parse_json(marked, marker, "its stage")
        found.stage, found.begun, found.run_id = str(record["stage"]), bool(record.get(DELETING)), record.get("mlflow_run_id")
        if marker == RUN_RECORD:
            found.provides = {uri, record["fingerprint"], *filter(None, [found.run_id])}
            found.needs = {*record["inputs"].values(), *record["upstream_mlflow_run_ids"].values()}
            check_document(record, RunRecord, marker, "its stage", REQUIRED)  # those of early versions do not list the files
            found.changed = max(files[marker].modified, datetime.fromisoformat(record["started"]).timestamp() + record["seconds"])
        names = {*record["files"]}
    except (UserError, KeyError, TypeError, AttributeError, ValueError):
        found.keep = f"its {marker} is not one of this project, or of an early version"
        return found
    if not found.unfinished:
        found.provides |= {_digest(uri, name) for name in files if "/" not in name and name.endswith(_IDENTIFYING) and name != marker}
    if strange := sorted(set(files) - names - {RUN_RECORD, UPLOADING}):
        found.keep = f"holds {strange[0]}, which is not part of it"
    if faults := [f"{name} is {entry.fault}" for name, entry in files.items() if entry.fault]:
        found.keep = faults[0]
    found.delete = lambda: _delete_output(root, uri, marker, marked, sorted(set(files) - {RUN_RECORD, UPLOADING}))
    return found


def _digest(uri: str, name: str) -> str:
    """Returns the SHA-256 of a file, of an object as it was uploaded with."""
    place = storage.join(uri, name)
    if storage.is_s3(place) and (known := storage.head(place)[2]):
        return known
    with storage.opened(place) as file:
        return storage.digest_stream(file)


def _delete_output(root: str, uri: str, marker: str, marked: bytes, names: list[str]) -> str:
    with ExitStack() as stack:
        if not storage.is_s3(uri):
            if Path(uri).resolve() != Path(uri):
                return "a folder above it has become a link"
            if not all(_lock(path, stack) for path in partial_folder(uri).glob("*.lock")):
                return "a process is making it anew"
        if not storage.exists(storage.join(uri, marker)) or storage.read(storage.join(uri, marker)) != marked:
            return "it has changed meanwhile"
        with disk_errors(uri):
            note = storage.join(uri, UPLOADING)
            stage = parse_json(marked, marker, "its stage")["stage"]
            storage.write(note, to_json({"stage": stage, "files": names, DELETING: True}))
            storage.delete(storage.join(uri, RUN_RECORD))
            _together(names, lambda name: storage.delete(storage.join(uri, name)))
            storage.delete(note)
            if not storage.is_s3(uri) and uri != root:
                _remove_empty(Path(uri))
    return ""


def _remove_empty(folder: Path) -> None:
    """Removes a folder and those in it, unless somebody has put a file there."""
    with suppress(OSError):
        for below in sorted((path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True):
            below.rmdir()
        folder.rmdir()


def _works(root: str, partial: str, entries: list[Entry]) -> Iterator[Found]:
    """Describes the unfinished works in a folder OUT.partial: FINGERPRINT/, the files FINGERPRINT.*, and no other."""
    by_fingerprint: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        name = PurePosixPath(entry.path).relative_to(partial).parts[0].partition(".")[0]
        if _FINGERPRINT.fullmatch(name):
            by_fingerprint[name].append(entry)
    for name, files in by_fingerprint.items():
        folder = Path(root, partial, name)
        found = Found(f"{partial}/{name}", sum(entry.size for entry in files), max(entry.modified for entry in files))
        found.unfinished = True
        try:
            content = folder.with_suffix(".json").read_bytes()
            record = parse_json(content, "", "its stage")
            found.stage, found.provides = str(record["stage"]), {name}
            found.needs = {str(value) for value in record["inputs"].values()}
            found.delete = lambda folder=folder: _delete_work(folder)  # type: ignore[misc]
        except (OSError, UserError, KeyError, AttributeError):
            found.keep = "its record is missing or not one of this project"
        if faults := [entry for entry in files if entry.fault]:
            found.keep = f"{faults[0].path} is {faults[0].fault}"
        yield found


def _delete_work(folder: Path) -> str:
    """Deletes unfinished work, unless a process holds its lock; its record goes last."""
    with ExitStack() as stack:
        if folder.resolve() != folder or not _lock(folder.with_suffix(".lock"), stack):
            return "a process is working on it"
        with disk_errors(folder):
            leftover = folder.with_suffix(".removed")
            if folder.exists():
                folder.rename(leftover)  # at once, so that nobody resumes half of it
            shutil.rmtree(leftover, ignore_errors=True)
            for suffix in (FAILED, ".json", ".lock"):
                folder.with_suffix(suffix).unlink(missing_ok=True)
            with suppress(OSError):  # work with other fingerprints, or messages to MLflow
                folder.parent.rmdir()
    return ""


def _lock(path: Path, stack: ExitStack) -> bool:
    """Takes the lock of unfinished work until the stack is closed; returns whether no other process holds it."""
    try:
        file = stack.enter_context(path.open("ab"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
