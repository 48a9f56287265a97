from pathlib import Path

import numpy as np
import pytest

from components.common.errors import UserError
from components.common.formats.shards import decode, square
from components.common.runs.shards import open_shards
from components.common.training.reader import Reader, prefetch, require_splits
from tests.conftest import MakeShards


def sequence(reader: Reader, **arguments: int) -> list[int]:
    return [int(row) for batch in reader.shuffled(**{"batch_size": 6, "seed": 3, "epoch": 0, **arguments}) for row in batch.rows]


def test_every_image_is_read_once_and_is_the_right_one(make_shards: MakeShards) -> None:
    shards = open_shards(make_shards())
    reader = Reader(shards, "train")
    rows = shards.table(["image_id", "pixels", "codec", "height", "width", "bits"]).to_pylist()
    by_id = {row["image_id"]: square(decode(row), 32) for row in rows}
    names = reader.table["image_id"].to_pylist()

    seen = []
    for batch in reader.shuffled(batch_size=6, seed=0, epoch=0):
        for image, row in zip(batch.images, batch.rows, strict=True):
            np.testing.assert_array_equal(image, by_id[names[row]])
            seen.append(names[row])
    assert sorted(seen) == sorted(names)
    assert len(names) == 36


def test_splits_do_not_share_patients(make_shards: MakeShards) -> None:
    shards = open_shards(make_shards())
    patients = [set(Reader(shards, split).table["patient_id"].to_pylist()) for split in ("train", "val", "test")]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 30


def test_order_depends_on_seed_and_epoch(make_shards: MakeShards) -> None:
    reader = Reader(open_shards(make_shards()), "train")
    first = sequence(reader)
    assert sequence(reader) == first
    assert sequence(reader, epoch=1) != first
    assert sequence(reader, seed=4) != first


@pytest.mark.parametrize("start", [1, 3, 5, 6])
def test_an_epoch_can_be_resumed_at_any_batch(make_shards: MakeShards, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.common.training.reader.WINDOW", 2)  # several windows, so that whole windows are skipped
    reader = Reader(open_shards(make_shards()), "train")
    assert sequence(reader, start=start) == sequence(reader)[6 * start :]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_each_global_batch(make_shards: MakeShards, ranks: int) -> None:
    shards = open_shards(make_shards())
    whole = list(Reader(shards, "train").shuffled(batch_size=6, seed=0, epoch=0))
    slices = [list(Reader(shards, "train", rank=rank, ranks=ranks).shuffled(batch_size=6, seed=0, epoch=0)) for rank in range(ranks)]
    for batch, *parts in zip(whole, *slices, strict=True):
        np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), batch.rows)
        np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), batch.images)


def test_in_order_is_the_order_of_the_table(make_shards: MakeShards) -> None:
    reader = Reader(open_shards(make_shards()), "val")
    batches = list(reader.in_order(5))
    assert [int(row) for batch in batches for row in batch.rows] == list(range(12))
    assert [len(batch.rows) for batch in batches] == [5, 5, 2]


def test_kept_rows_are_the_only_ones(make_shards: MakeShards) -> None:
    reader = Reader(open_shards(make_shards()), "train")
    kept = np.array([0, 5, 6, 7, 20, 35])
    reader.keep(kept)
    assert sorted(sequence(reader)) == kept.tolist()


def test_several_folders_are_one(make_shards: MakeShards) -> None:
    shards = open_shards([make_shards("a", images=10), make_shards("b", images=20)])
    assert sorted(shards.inputs) == ["shards.0", "shards.1"]
    assert len(shards.table(["image_id"])) == 30


def test_prefetch_raises_errors_and_stops_its_thread() -> None:
    def failing() -> object:
        yield 1
        raise ValueError("broken")

    items = prefetch(failing())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)

    produced = []

    def endless() -> object:
        while True:
            produced.append(1)
            yield 1

    endless_items = prefetch(endless(), depth=2)
    next(endless_items)
    endless_items.close()
    count = len(produced)
    assert count <= 4
    assert len(produced) == count


def test_16_bit_images_stay_16_bit(make_shards: MakeShards, tmp_path: Path) -> None:
    batch = next(iter(Reader(open_shards(make_shards(bits=16)), "train").in_order(4)))
    assert batch.images.dtype == np.uint16
    assert batch.images.max() > 255


@pytest.mark.parametrize(
    ("split", "found", "advice"),
    [
        ("train", "val 6, test 6", "lower preprocess.val_fraction and preprocess.test_fraction"),
        ("val", "train 18, test 6", "raise preprocess.val_fraction"),
        ("test", "train 18, val 6", "raise preprocess.test_fraction"),
    ],
)
def test_an_empty_split_is_named_with_what_to_do(make_shards: MakeShards, split: str, found: str, advice: str) -> None:
    folder = make_shards(without=split)
    for check in (lambda: Reader(open_shards(folder), split), lambda: require_splits(open_shards(folder))):
        with pytest.raises(UserError) as error:
            check()
        message = f"{folder}: the {split} split is empty (patients: {found}); add patients or {advice}, and run preprocess again"
        assert str(error.value) == message


def test_splits_that_all_have_a_patient_are_accepted(make_shards: MakeShards) -> None:
    require_splits(open_shards(make_shards(images=6)))
