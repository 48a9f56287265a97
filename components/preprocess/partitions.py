"""The output of one partition, and the merge of the outputs of all partitions.

A partition's output is as sensitive as the raw folder: its notes hold raw paths, its list of names raw ids. The merge needs them to
find duplicates, and labels of unknown images, across partitions; merged shards are without. Delete the output after the merge.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

from pydantic import ValidationError

from components.common.errors import UserError
from components.common.formats.atomic import replaced
from components.common.formats.documents import check_document
from components.common.formats.manifest import Origin
from components.common.runs import storage
from components.common.runs.inputs import read_document
from components.preprocess import manifest
from components.preprocess.ledger import read_ledger
from components.preprocess.merge import NAMES
from components.preprocess.params import Preprocess
from components.preprocess.parts import Part, Partition
from components.preprocess.rows import Context

PARTITION = "partition.json"
MADE_BY = "preprocess --partition"


class File(TypedDict):
    """A file of the output of a partition."""

    name: str
    sha256: str


class Description(Origin):
    """The content of a partition.json."""

    partition: list[int]
    raw: str
    parts: list[list[int]]  # number and files of each part
    files: list[File]


class Output(NamedTuple):
    """The finished output of a partition."""

    folder: str
    described: Description
    digest: str  # SHA-256 of partition.json

    @property
    def partition(self) -> Partition:
        """Which partition it is."""
        return Partition(*self.described["partition"])

    def local_name(self, name: str) -> str:
        """Returns the name of a file beside those of other partitions."""
        return f"{self.partition.number}-{name}" if name == NAMES else name


def write(context: Context, partition: Partition, parts: list[Part], out: Path) -> dict[str, float]:
    """Links parts and notes into the output, describes them and returns the metrics; idempotent."""
    with read_ledger(context.folder, parts) as ledger:
        metrics: dict[str, float] = {"files": ledger.files, "quarantined": ledger.quarantined}
    names = [name for part in parts for name in (part.notes_name, part.name)]
    files = [name for name in (NAMES, *names) if (context.folder / name).exists()]
    for name in files:
        storage.link(context.folder / name, out / name)
    content = {
        "partition": list(partition),
        "raw": context.raw,
        **manifest.describe(context),
        "parts": [list(part) for part in parts],
        "files": [{"name": name, "sha256": storage.digest_file(out / name)} for name in files],
    }
    storage.write_json(out / PARTITION, content)
    return metrics


def open_all(folders: list[str]) -> list[Output]:
    """Opens the outputs of all partitions, in order; raises UserError if one is missing, given twice or unlike the others."""
    outputs = [_open(folder) for folder in folders]
    outputs.sort(key=lambda output: output.partition)
    first = outputs[0]
    for output in outputs:
        different = [name for name in _settings(first) if _settings(output).get(name) != _settings(first)[name]]
        if different:
            raise UserError(f"{output.folder}: differs from {first.folder} in {', '.join(different)}; make all with the same settings")
    total = first.partition.total
    found = [output.partition.number for output in outputs]
    missing = sorted(set(range(total)) - set(found))
    if missing:
        raise UserError(f"--shards: lacks the partitions {', '.join(f'{number}/{total}' for number in missing)}; give all {total} of them")
    if len(found) > total:
        twice = next(number for number in found if found.count(number) > 1)
        raise UserError(f"--shards: names the partition {twice}/{total} twice; give each once")
    return outputs


def _open(folder: str) -> Output:
    content, digest = read_document(folder, PARTITION, MADE_BY)
    path = storage.join(folder, PARTITION)
    described = check_document(content, Description, path, MADE_BY)
    names = [file["name"] for file in described["files"]]
    if any(len(pair) != 2 for pair in (described["partition"], *described["parts"])) or any("/" in name for name in names):
        raise UserError(f"{path}: describes no partition; run {MADE_BY} again")
    return Output(folder, described, digest)


def gather(outputs: list[Output], folder: Path) -> tuple[list[Part], list[Path]]:
    """Brings parts and notes into one folder; returns all parts, in order, and the lists of names.

    Existing files are kept. A missing or changed one raises UserError.
    """
    folder.mkdir(exist_ok=True)
    for output in outputs:
        for file in output.described["files"]:
            _fetch(storage.join(output.folder, file["name"]), folder / output.local_name(file["name"]), file["sha256"])
    parts = sorted(Part(*numbers) for output in outputs for numbers in output.described["parts"])
    return parts, [folder / output.local_name(NAMES) for output in outputs]


def _fetch(source: str, target: Path, sha256: str) -> None:
    if target.exists() and storage.digest_file(target) == sha256:
        return
    target.unlink(missing_ok=True)
    if storage.is_s3(source):
        with storage.opened(source) as copy, replaced(target) as scratch, scratch.open("wb") as file:
            shutil.copyfileobj(copy, file)
    elif not Path(source).is_file():
        raise UserError(f"{source}: not found; make the partition again")
    else:
        storage.link(Path(source), target)
    if storage.digest_file(target) != sha256:
        raise UserError(f"{source}: is not what the partition wrote; make the partition again")


def _settings(output: Output) -> dict[str, Any]:
    """Returns what all partitions must share, with one entry per parameter."""
    content = {name: value for name, value in output.described.items() if name not in ("partition", "parts", "files", "params")}
    flat = {f"params.{name}": value for name, value in output.described["params"].items()}
    return {**content, **flat, "number of partitions": output.partition.total}


def shared(outputs: list[Output]) -> Origin:
    """Returns what `manifest.describe` returned in each partition."""
    described: dict[str, Any] = {**outputs[0].described}
    return cast(Origin, {name: described[name] for name in Origin.__annotations__})


def section(outputs: list[Output]) -> Preprocess:
    """Returns the parameters of the partitions; raises UserError if another version made them."""
    try:
        return Preprocess.model_validate(outputs[0].described["params"])
    except ValidationError:
        raise UserError(f"{outputs[0].folder}: made by another version, with other parameters; make the partitions again") from None
