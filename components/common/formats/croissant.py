"""croissant.json: what is in a folder of shards, for catalogues and loaders of data sets (MLCommons Croissant 1.0, JSON-LD).

It says what the manifest says, in the words of a standard, and nothing else. Whoever publishes the shards adds what a hospital decides:
`license`, `creator`, `url`, `datePublished` and `citeAs`.
"""

from typing import Any

import pyarrow as pa

from components.common.formats.manifest import Manifest
from components.common.formats.shards import SCHEMA

CROISSANT = "croissant.json"
RECORDS = "images"  # name of the record set, which has one record per image
_PARTS = "parts"
_PARQUET = "application/x-parquet"
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
} | {
    name: f"cr:{name}"
    for name in (
        "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format", "includes",
        "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated", "replace",
        "samplingRate", "separator", "source", "subField", "transform",
    )
}  # fmt: skip
"""The context of every Croissant 1.0 file."""
COLUMNS = {
    "image_id": "Pseudonym of the image",
    "patient_id": "Pseudonym of the patient",
    "split": "train, val or test; each patient is in one of them",
    "pixels": "Pixels, encoded as `codec` says: differences in reading order, bit planes, zstd",
    "codec": "Name of the encoding of the pixels",
    "height": "Height of the image in pixels",
    "width": "Width of the image in pixels",
    "bits": "Bits per pixel, 8 or 16; bright is dense tissue",
    "labels": "One value per finding: 1 present, 0 absent, NaN unknown",
    "boxes": "Boxes around findings, in pixels of the image, origin top left",
    "view": "View, such as PA or AP",
    "sex": "M, F or O",
    "age": "Age in years, at most 90",
    "manufacturer": "Manufacturer of the device",
    "photometric": "Photometric interpretation of the source",
    "transfer_syntax": "Transfer syntax UID or media type of the source",
    "source_height": "Height of the source in pixels",
    "source_width": "Width of the source in pixels",
}
"""Column of the shards -> description."""


def describe(manifest: Manifest) -> dict[str, Any]:
    """Returns the content of croissant.json for the folder that a manifest describes."""
    counts, findings = manifest["counts"], manifest["findings"]
    splits = ", ".join(f"{number} images of {counts['patients'][split]} patients ({split})" for split, number in counts["images"].items())
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "chest-radiographs",
        "description": f"De-identified frontal chest radiographs, the longer side {manifest['size']} pixels: {splits}.",
        "version": f"{manifest['schema_version']}.0.0",
        "keywords": ["chest radiograph", *findings],
        "rai:dataPreprocessingProtocol": [f"{name}: {value}" for name, value in manifest["params"].items()],
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": part["name"],
                "name": part["name"],
                "contentUrl": part["name"],
                "encodingFormat": _PARQUET,
                "sha256": part["sha256"],
            }
            for part in manifest["parts"]
        ]
        + [{"@type": "cr:FileSet", "@id": _PARTS, "name": _PARTS, "encodingFormat": _PARQUET, "includes": "part-*.parquet"}],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": RECORDS,
                "name": RECORDS,
                "key": {"@id": f"{RECORDS}/image_id"},
                "field": [_field(field, findings) for field in SCHEMA],
            }
        ],
    }


def _field(field: pa.Field, findings: list[str]) -> dict[str, Any]:
    """Describes a column of the shards."""
    name, kind = f"{RECORDS}/{field.name}", field.type
    about: dict[str, Any] = {"@type": "cr:Field", "@id": name, "name": name, "description": COLUMNS[field.name]}
    if field.name == "labels":
        about["description"] += f"; in this order: {', '.join(findings)}" if findings else ""
    if not pa.types.is_list(kind):
        return about | {"dataType": _type(kind), "source": _source(field.name)}
    about["repeated"] = True
    if not pa.types.is_struct(kind.value_type):
        return about | {"dataType": _type(kind.value_type), "source": _source(field.name)}
    parts = [
        {
            "@type": "cr:Field",
            "@id": f"{name}/{part.name}",
            "name": f"{name}/{part.name}",
            "dataType": _type(part.type),
            "source": _source(field.name) | {"transform": {"jsonPath": part.name}},
        }
        for part in kind.value_type
    ]
    return about | {"subField": parts}


def _source(column: str) -> dict[str, Any]:
    return {"fileSet": {"@id": _PARTS}, "extract": {"column": column}}


def _type(kind: pa.DataType) -> str:
    """Returns the data type; Croissant 1.0 has none for bytes, which mlcroissant gives as sc:Text."""
    return "sc:Integer" if pa.types.is_integer(kind) else "sc:Float" if pa.types.is_floating(kind) else "sc:Text"
