import threading
from pathlib import Path

import numpy as np
import pytest

from components.common.errors import UserError
from components.common.formats.shards import decode, square
from components.common.runs import shards as opened
from components.common.runs.shards import Part, RowGroup, open_shards
from components.common.training import order, reader
from components.common.training.reader import Reader, prefetch, require_splits
from tests.conftest import MakeShards


def sequence(one: Reader, **arguments: int) -> list[int]:
    return [int(row) for batch in one.shuffled(**{"batch_size": 6, "seed": 3, "epoch": 0, **arguments}) for row in batch.rows]


def test_every_image_is_read_once_and_is_the_right_one(make_shards: MakeShards) -> None:
    shards = open_shards(make_shards())
    one = Reader(shards, "train")
    rows = shards.table(["image_id", "pixels", "codec", "height", "width", "bits"]).to_pylist()
    by_id = {row["image_id"]: square(decode(row), 32) for row in rows}
    names = one.table["image_id"].to_pylist()

    seen = []
    for batch in one.shuffled(batch_size=6, seed=0, epoch=0):
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
    one = Reader(open_shards(make_shards()), "train")
    first = sequence(one)
    assert sequence(one) == first
    assert sequence(one, epoch=1) != first
    assert sequence(one, seed=4) != first


@pytest.mark.parametrize("start", [1, 3, 5, 6])
def test_an_epoch_can_be_resumed_at_any_batch(make_shards: MakeShards, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "STREAMS", 3)
    monkeypatch.setattr(reader, "SPAN", 5000)  # about 7 rows
    one = Reader(open_shards(make_shards()), "train")
    assert sequence(one, start=start) == sequence(one)[6 * start :]


@pytest.mark.parametrize("streams", [3, order.STREAMS])
@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_ranks_share_each_global_batch(make_shards: MakeShards, ranks: int, streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "STREAMS", streams)
    shards = open_shards(make_shards())
    whole = list(Reader(shards, "train").shuffled(batch_size=6, seed=0, epoch=0))
    slices = [list(Reader(shards, "train", rank=rank, ranks=ranks).shuffled(batch_size=6, seed=0, epoch=0)) for rank in range(ranks)]
    for batch, *parts in zip(whole, *slices, strict=True):
        np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), batch.rows)
        np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), batch.images)


def test_few_row_groups_are_shuffled_as_a_whole(make_shards: MakeShards) -> None:
    """The order is that of earlier versions, so that their runs can be repeated."""
    one = Reader(open_shards(make_shards()), "train")
    groups = np.split(np.arange(36), np.cumsum(group_sizes(one))[:-1])
    rng = np.random.default_rng((3, 0))
    rows = np.concatenate([groups[i] for i in rng.permutation(len(groups))])
    assert len(groups) == 10
    assert sequence(one) == rows[rng.permutation(36)].tolist()


def group_sizes(one: Reader) -> list[int]:
    return np.unique(one._group, return_counts=True)[1].tolist()


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_rank_reads_and_decodes_its_own_share(make_shards: MakeShards, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also counts footers: each is parsed once per process, however many readers and epochs there are."""
    decoded, read, footers = [], [], []
    original_decode, original_read, original_check = reader.decode, RowGroup.read, opened.check_columns
    monkeypatch.setattr(reader, "decode", lambda row: [decoded.append(row["image_id"]), original_decode(row)][1])
    monkeypatch.setattr(RowGroup, "read", lambda group: [read.append(group[:2]), original_read(group)][1])
    monkeypatch.setattr(opened, "check_columns", lambda *given: [footers.append(given), original_check(*given)][1])
    shards = open_shards(make_shards(images=800, parts=4, group=5))  # 480 in the train split, in 160 row groups
    for rank in range(ranks):
        one = Reader(shards, "train", rank=rank, ranks=ranks)
        for epoch in range(2):
            decoded.clear()
            read.clear()
            batches = list(one.shuffled(16, 0, epoch))
            assert [len(batch.rows) for batch in batches] == [16 // ranks] * 30
            assert len(decoded) == len(set(decoded)) == 480 // ranks
            assert len(read) == len(set(read)) <= 160 / ranks + 2  # a row group may be cut at either end
    assert len(footers) == 4


def test_row_groups_are_read_ahead_of_the_first_batch(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Reader(open_shards(make_shards(images=8 * reader.AHEAD, parts=1, group=8)), "train")
    together, original = threading.Barrier(reader.AHEAD), RowGroup.read
    monkeypatch.setattr(RowGroup, "read", lambda group: [together.wait(timeout=20), original(group)][1])
    assert len(list(one.in_order(1))) == len(one)


def test_a_damaged_row_group_ends_the_epoch(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Reader(open_shards(make_shards()), "train")
    monkeypatch.setattr(Part, "open", lambda part: (_ for _ in ()).throw(UserError("broken")))
    with pytest.raises(UserError, match="broken"):
        list(one.in_order(4))


def test_in_order_is_the_order_of_the_table(make_shards: MakeShards) -> None:
    one = Reader(open_shards(make_shards()), "val")
    batches = list(one.in_order(5))
    assert [int(row) for batch in batches for row in batch.rows] == list(range(12))
    assert [len(batch.rows) for batch in batches] == [5, 5, 2]


def test_kept_rows_are_the_only_ones(make_shards: MakeShards) -> None:
    one = Reader(open_shards(make_shards()), "train")
    kept = np.array([0, 5, 6, 7, 20, 35])
    one.keep(kept)
    assert sorted(sequence(one)) == kept.tolist()


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
