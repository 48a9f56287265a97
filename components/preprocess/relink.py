"""Raw ids to pseudonyms, inside the hospital: `python -m components.preprocess.relink < ids.txt`.

Reads one id a line and prints `pseudonym<TAB>id`. A pseudonym is linked back by computing those of all ids it could stand for;
without the key (CXR_PSEUDONYM_KEY) nobody can do that.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator

from components.common.errors import UserError
from components.common.formats.shards import MANIFEST
from components.common.runs.inputs import read_document
from components.preprocess.deidentify import ENVIRONMENT_VARIABLE, Pseudonyms, load_pseudonyms

KINDS: dict[str, Callable[[Pseudonyms, str], str]] = {
    "patient": lambda pseudonyms, text: pseudonyms.patient(f"id:{text}"),
    "study": lambda pseudonyms, text: pseudonyms.patient(f"study:{text}"),
    "file": lambda pseudonyms, text: pseudonyms.patient(f"file:{text}"),
    "image": lambda pseudonyms, text: pseudonyms.image(text),
}
"""Of ids: a PatientID (or the patient of a table), a StudyInstanceUID or a path that stands in for one where it is missing, and
a SOPInstanceUID (or the path of a picture)."""


def pairs(ids: Iterable[str], kind: str, pseudonyms: Pseudonyms, wanted: frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """Pseudonyms with the ids that they stand for.

    Args:
        ids: raw, with white space around them.
        kind: of KINDS.
        pseudonyms: with the key of the shards.
        wanted: the only pseudonyms to give; empty: all.
    """
    for line in ids:
        text = line.strip()
        pseudonym = KINDS[kind](pseudonyms, text)
        if text and (not wanted or pseudonym in wanted):
            yield pseudonym, text


def check_key(pseudonyms: Pseudonyms, shards: str) -> None:
    """Makes sure that the shards were made with this key.

    Args:
        pseudonyms: with the key.
        shards: the output folder of preprocess.

    Raises:
        UserError: they were made with another, or are no shards.
    """
    manifest, _ = read_document(shards, MANIFEST, "preprocess")
    made_with = manifest["pseudonym_key_id"]
    if made_with != pseudonyms.key_id:
        raise UserError(f"{shards}: made with key {made_with}, {ENVIRONMENT_VARIABLE} holds key {pseudonyms.key_id}; set it to the former")


def main(arguments: list[str] | None = None) -> int:
    """Prints the pairs and returns the exit code: 0 done, 2 the user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m components.preprocess.relink", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="patient", help="what the ids are (default: patient)")
    parser.add_argument("--shards", metavar="PATH", help="output folder of preprocess; its key must be this one")
    parser.add_argument("--only", nargs="+", default=[], metavar="PSEUDONYM", help="print these pseudonyms alone")
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
