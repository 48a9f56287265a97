"""Train, validation or test: by patient, so that no patient is on both sides."""

import hashlib

UNDIVIDED = "train+val"
"""A data set's own split that leaves validation to its users."""


def split_of(identity: str, val_fraction: float, test_fraction: float) -> str:
    """The split of a patient.

    A fixed hash of the raw identity decides, without a key and without regard to the others: neither new patients nor
    another pseudonym key ever move anyone. (The hash itself is not published, only which of three sets it falls in.)

    Args:
        identity: the patient's, as in the raw files.
        val_fraction: share of the validation split.
        test_fraction: share of the test split.

    Returns:
        train, val or test.
    """
    position = unit_interval(f"cxr-split:{identity}")
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def divided(named: str, identity: str, val_fraction: float) -> str:
    """A split that the data set's makers named, with validation taken out of training by hash where they did not.

    Args:
        named: train, val, test or `UNDIVIDED`.
        identity: the patient's, as in the raw files.
        val_fraction: share of the validation split, out of the `UNDIVIDED` patients.
    """
    return split_of(identity, val_fraction, 0.0) if named == UNDIVIDED else named


def unit_interval(text: str) -> float:
    """A fixed, uniform hash of a text to [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48
