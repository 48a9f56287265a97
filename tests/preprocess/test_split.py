import math

import pytest

from components.preprocess.parts import part_of, path_hash
from components.preprocess.split import split_of

EXPECTED = ["train", "test", "train", "test", "test", "train", "train", "train", "train", "train", "val", "test"]


def test_split_fractions_are_as_requested() -> None:
    splits = [split_of(f"id:{number}", 0.15, 0.2) for number in range(20_000)]
    for name, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
        assert splits.count(name) / len(splits) == pytest.approx(share, abs=5 * math.sqrt(0.25 / len(splits)))


def test_splits_never_change() -> None:
    """Hard-coded splits: a new version of the code must not reshuffle a cohort."""
    assert [split_of(f"id:MRN{number}", 0.15, 0.2) for number in range(12)] == EXPECTED


def test_a_larger_validation_split_takes_from_train_alone() -> None:
    for number in range(2000):
        before, after = split_of(f"id:{number}", 0.1, 0.2), split_of(f"id:{number}", 0.3, 0.2)
        assert before == after or (before, after) == ("train", "val")


def test_parts_are_even_and_depend_on_the_path_alone() -> None:
    parts = [part_of(f"patient{number}/image.dcm", 8) for number in range(4000)]
    assert all(parts.count(part) == pytest.approx(500, abs=110) for part in range(8))
    assert part_of("a/b", 8) == int(path_hash("a/b")[:16], 16) % 8


def test_paths_that_are_not_utf8_have_a_hash() -> None:
    assert len(path_hash("caf\udce9.dcm")) == 64
