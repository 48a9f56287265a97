"""What a run of the pipeline `scoring` needs to know of the model before it begins, looked up once for all of its steps."""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from components.common.errors import UserError
from components.common.formats.model import DESCRIPTION, parse_description, preprocessing_of
from components.common.formats.reference import MADE_BY, REFERENCE, check_reference
from components.common.runs import scored, storage
from components.common.runs.registered_models import download, find_version, kept


class Scorer(NamedTuple):
    """A version of a registered model, and what it has scored."""

    uri: str  # models:/NAME/VERSION
    preprocessing: dict[str, Any]  # parameters of preprocess that its images need
    record: str  # folder of its predictions
    scored: str  # list of the images in the record
    reference: str  # SHA-256 of its reference for monitor; empty if there is none

    def for_predict(self) -> str:
        """Returns as JSON which model is used, and where its predictions go."""
        return json.dumps({"uri": self.uri, "record": self.record})

    def for_partition(self) -> dict[str, Any]:
        """Returns as JSON values what preprocess needs: its parameters, and which images to leave out."""
        overrides = [f"preprocess.{name}={json.dumps(value)}" for name, value in self.preprocessing.items()]
        return {"overrides": overrides, "skip": self.scored}


def look_up(uri: str, root: str) -> Scorer:
    """Looks up the version that an address such as models:/NAME@champion means at present.

    Args:
        uri: the address.
        root: parent folder of all outputs.

    Raises:
        UserError: there is no such version, or its reference cannot be used here.
    """
    version = find_version(uri)
    with tempfile.TemporaryDirectory() as folder:
        download(f"{version.uri}/artifacts/{DESCRIPTION}", Path(folder))
        content = next(Path(folder).rglob(DESCRIPTION)).read_bytes()
    reference = _reference(version.uri) if version.run_id else ""
    description = parse_description(content, f"{version.uri}: {DESCRIPTION}", "register")
    record = scored.record(root, version.name, version.number)
    images = scored.scored_images([record], storage.digest(content))
    return Scorer(version.uri, preprocessing_of(description), record, scored.write_list(images, record), reference)


def _reference(uri: str) -> str:
    found = kept(uri, REFERENCE, MADE_BY)
    if found is None:
        return ""
    content, digest = found
    if check_reference(content, name := f"{uri}: {REFERENCE}")["backbone"]:
        raise UserError(f"{name} has features of a backbone, which this pipeline does not compute; make one without --backbone")
    return digest
