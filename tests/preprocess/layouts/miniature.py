"""Miniature copies of public data sets: their file names, columns and quirks, with phantom pixels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from components.__main__ import main
from components.preprocess import deidentify, layouts
from components.preprocess.labels import Table
from components.preprocess.params import Preprocess
from tests.common.dicom.phantoms import picture, write

KEY = "a key that is long enough"
Rows = dict[str, dict[str, Any]]


def write_text(folder: Path, name: str, *lines: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_picture(path: Path, height: int = 64, width: int = 64, mode: str = "L") -> None:
    """Writes a PNG or JPEG file, depending on its extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(height, width, seed=sum(path.name.encode()))).convert(mode).save(path)


def write_dicom(path: Path, **elements: Any) -> None:
    """Writes a DICOM file without identifiers, as in public data sets."""
    nobody = dict.fromkeys(("PatientName", "PatientBirthDate", "AccessionNumber", "InstitutionName", "StudyInstanceUID", "PatientID"))
    write(path, picture(64, 64, seed=sum(path.name.encode())), **{**nobody, **elements})


def table(folder: Path, layout: Any, **params: Any) -> Table:
    """Returns the table that a layout reads from a folder."""
    return layouts.read(str(folder), Preprocess(layout=layout, **params))


def run(folder: Path, monkeypatch: Any, layout: str, *overrides: str) -> tuple[Rows, dict[str, Any]]:
    """Runs the stage on FOLDER/raw.

    Returns:
        Rows by relative path, found by their pseudonyms, and the manifest.
    """
    monkeypatch.setenv(deidentify.ENVIRONMENT_VARIABLE, KEY)
    assert main(arguments(folder, str(folder / "raw"), layout, *overrides)) == 0
    out = folder / "shards"
    rows = [row for path in out.glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    paths = pseudonyms_of(folder / "raw", deidentify.load_pseudonyms().image)
    return {paths[row["image_id"]]: row for row in rows}, json.loads((out / "manifest.json").read_text())


def arguments(folder: Path, raw: str, layout: str, *overrides: str) -> list[str]:
    """Returns a command line that reads `raw` and writes FOLDER/shards."""
    (folder / "params.yaml").write_text(
        f"preprocess: {{layout: {layout}, size: 32, parts: 2}}\nruntime: {{workers: 1, max_quarantined: 0.9}}\n"
    )
    options = [item for override in overrides for item in ("--set", f"preprocess.{override}")]
    return ["preprocess", "--raw", raw, "--out", str(folder / "shards"), "--params", str(folder / "params.yaml"), *options]


def pseudonyms_of(raw: Path, pseudonym: Callable[[str], str]) -> dict[str, str]:
    """Returns relative paths by pseudonym, for files without a SOPInstanceUID."""
    paths = [path.relative_to(raw).as_posix() for path in raw.rglob("*") if path.is_file()]
    return {pseudonym(path): path for path in paths}


def positives(row: dict[str, Any], manifest: dict[str, Any]) -> set[str]:
    """Returns the names of the findings that are positive in a row."""
    return {name for name, value in zip(manifest["findings"], row["labels"], strict=True) if value == 1}
