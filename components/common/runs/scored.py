"""The images that a model has scored: those in the predictions of earlier runs of predict that have finished.

A run of a pipeline writes a list of them when it begins, so that all of its steps, and all attempts at them, leave out the same images
whatever other runs have scored meanwhile.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from components.common.errors import UserError
from components.common.formats.documents import RUN_RECORD
from components.common.formats.predictions import PREDICTIONS, parse_predictions
from components.common.runs import storage
from components.common.runs.inputs import read_record
from components.common.runs.work import PARTIAL

RECORD = "scored"  # folder below the root of all outputs of pipelines with the predictions of each version of a model
LISTS = "lists"  # folder there with the lists
_REQUESTS = 16  # outputs that are read at a time


def record(root: str, name: str, version: str) -> str:
    """Returns the folder of the predictions of a version of a registered model."""
    return storage.join(root, RECORD, name, version)


def scored_images(folders: Iterable[str], model: str, apart_from: str = "") -> frozenset[str]:
    """Returns the ids of the images that a model has scored.

    Args:
        folders: output folders of predict, or folders that hold such, at any depth; on S3 and for pipelines they need not exist.
        model: SHA-256 of the model.json of the model. Outputs of other models do not count.
        apart_from: an output that does not count, since it is going to be replaced.

    Raises:
        UserError: a file of an output cannot be read or is damaged.
    """
    outputs = sorted({output for folder in folders for output in _outputs(folder)} - {_plain(apart_from)})
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return frozenset(image for images in pool.map(lambda output: _images(output, model), outputs) for image in images)


def digest(images: Iterable[str]) -> str:
    """Returns the SHA-256 of a set of ids."""
    return storage.digest(_lines(images))


def write_list(images: Iterable[str], folder: str) -> str:
    """Writes ids to a file in the folder of a version that is named by their digest; returns its path."""
    content = _lines(images)
    path = storage.join(folder, LISTS, f"{storage.digest(content)}.txt")
    if not storage.exists(path):
        storage.write(path, content)
    return path


def read_list(path: str) -> frozenset[str]:
    """Reads ids that `write_list` has written; raises UserError if the file is missing or has changed."""
    content = storage.read(path)
    if storage.digest(content) not in path:
        raise UserError(f"{path}: has changed; delete it and start the pipeline again")
    return frozenset(content.decode().split())


def _lines(images: Iterable[str]) -> bytes:
    return "".join(f"{image}\n" for image in sorted(images)).encode()


def _outputs(folder: str) -> list[str]:
    """Lists the finished outputs of any stage at or below a folder."""
    if storage.is_empty(folder):
        return []
    places = [entry.path.split("/") for entry in storage.walk(folder)]
    return [_plain(storage.join(folder, *above)) for *above, name in places if name == RUN_RECORD and not any(map(_is_unfinished, above))]


def _plain(folder: str) -> str:
    """Returns the address of a folder in a form that can be compared."""
    return folder.rstrip("/") if storage.is_s3(folder) else str(Path(folder).resolve())


def _is_unfinished(name: str) -> bool:
    return name.endswith(PARTIAL)


def _images(output: str, model: str) -> list[str]:
    found = read_record(output)
    if found.get("stage") != "predict" or found.get("inputs", {}).get("model") != model:
        return []
    path = storage.join(output, PREDICTIONS)
    images: list[str] = parse_predictions(storage.read(path), path)["image_id"].to_pylist()
    return images
