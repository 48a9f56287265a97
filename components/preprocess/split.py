"""Train, validation or test: by patient, so that no patient is in two splits."""

import hashlib

UNDIVIDED = "train+val"  # official split of a data set that leaves the choice of a validation split to its users


def split_of(identity: str, val_fraction: float, test_fraction: float) -> str:
    """Returns the split of a patient: train, val or test.

    A fixed hash of the raw identity decides, without a key and independently of other patients, so that neither new patients
    nor another pseudonym key ever move anyone. The hash itself is not published.
    """
    digest = hashlib.sha256(f"cxr-split:{identity}".encode("utf-8", "surrogateescape")).digest()
    position = int.from_bytes(digest[:6], "big") / 2**48  # uniform in [0, 1)
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def split_undivided(official: str, identity: str, val_fraction: float) -> str:
    """Returns an official split (train, val or test), where `UNDIVIDED` patients are divided by hash."""
    return split_of(identity, val_fraction, 0.0) if official == UNDIVIDED else official
