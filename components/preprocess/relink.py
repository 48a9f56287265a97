"""Links pseudonyms back to raw ids, inside the hospital: `python -m components.preprocess.relink < ids.txt`.

Reads one id per line and prints `pseudonym<TAB>id`. A pseudonym is linked back by computing those of all candidate ids, which
nobody can do without the key (CXR_PSEUDONYM_KEY).
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator

from components.common.errors import UserError
from components.common.formats.manifest import MANIFEST
from components.common.runs.inputs import read_document
from components.preprocess.deidentify import ENVIRONMENT_VARIABLE, Pseudonyms, load_pseudonyms

KINDS: dict[str, Callable[[Pseudonyms, str], str]] = {
    "patient": lambda pseudonyms, text: pseudonyms.patient(f"id:{text}"),
    "study": lambda pseudonyms, text: pseudonyms.patient(f"study:{text}"),
    "file": lambda pseudonyms, text: pseudonyms.patient(f"file:{text}"),
    "image": lambda pseudonyms, text: pseudonyms.image(text),
}
"""Kind of id -> pseudonym: PatientID (or the patient of a table); StudyInstanceUID or path, which stand in for a missing PatientID;
SOPInstanceUID (or the path of a PNG or JPEG file)."""


def pairs(ids: Iterable[str], kind: str, pseudonyms: Pseudonyms, wanted: frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """Yields pseudonyms and raw ids of one of KINDS, only those whose pseudonym is `wanted` unless that is empty."""
    for line in ids:
        text = line.strip()
        pseudonym = KINDS[kind](pseudonyms, text)
        if text and (not wanted or pseudonym in wanted):
            yield pseudonym, text


def check_key(pseudonyms: Pseudonyms, shards: str) -> None:
    """Raises UserError if `shards` is not an output folder of preprocess, or was made with another key."""
    manifest, _ = read_document(shards, MANIFEST, "preprocess")
    made_with = manifest["pseudonym_key_id"]
    if made_with != pseudonyms.key_id:
        raise UserError(f"{shards}: made with key {made_with}, {ENVIRONMENT_VARIABLE} holds key {pseudonyms.key_id}; set it to the former")


def main(arguments: list[str] | None = None) -> int:
    """Prints the pairs and returns the exit code: 0 for success, 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(prog="python -m components.preprocess.relink", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="patient", help="what the ids are (default: patient)")
    parser.add_argument("--shards", metavar="PATH", help="output folder of preprocess, to check that it was made with this key")
    parser.add_argument("--only", nargs="+", default=[], metavar="PSEUDONYM", help="print only these pseudonyms")
    options = parser.parse_args(arguments)
    try:
        pseudonyms = load_pseudonyms()
        if options.shards:
            check_key(pseudonyms, options.shards)
        elif pseudonyms.simulated_only:
            raise UserError(f"{ENVIRONMENT_VARIABLE} is not set; set it to the key of the shards")
    except UserError as error:
        sys.stderr.write(f"relink: {error}\n")
        return 2
    found = 0
    for pseudonym, text in pairs(sys.stdin, options.kind, pseudonyms, frozenset(options.only)):
        found += 1
        sys.stdout.write(f"{pseudonym}\t{text}\n")
    if options.only and not found:
        sys.stderr.write("relink: none of the ids has this pseudonym; give other ids, another --kind, or the key that made it\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
