from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from components.common.errors import UserError
from components.common.runs.shards import open_shards
from components.common.training.reader import Reader
from components.detect.annotations import COLUMNS, Annotations, annotate, choose_classes
from tests.conftest import FINDINGS
from tests.detect.conftest import SPOTS, box


def reader_of(folder: str) -> Reader:
    return Reader(open_shards(folder), "train", COLUMNS)


def annotations_of(folder: str, classes: list[str] = FINDINGS, findings: list[str] = FINDINGS) -> Annotations:
    return annotate(reader_of(folder), classes, findings)


def test_boxes_move_with_the_image_onto_the_square(make_boxed: Callable[..., str]) -> None:
    reader = reader_of(make_boxed())
    known = annotate(reader, FINDINGS, FINDINGS)
    assert known.origin.tolist() == [[4.0, 0.0]] * len(reader)  # 24 px wide, centred in a square of 32 px
    row = next(row for row, labels in enumerate(known.labels) if labels.tolist() == [0, 1])
    assert known.boxes[row].tolist() == [[6, 8, 7, 12], [18, 8, 7, 12]]


def test_a_box_on_the_square_holds_the_bright_spot(make_boxed: Callable[..., str]) -> None:
    reader = reader_of(make_boxed())
    known = annotate(reader, ["Left"], FINDINGS)
    for batch in reader.in_order(5):
        for image, row in zip(batch.images, batch.rows, strict=True):
            for x, y, width, height in known.boxes[row].astype(int):
                inside = image[y : y + height, x : x + width].mean()
                assert inside > 255 * 0.65 and inside > image.mean() * 1.5


def test_classes_are_those_of_the_train_split(make_boxed: Callable[..., str]) -> None:
    def rename_in_test(row: dict[str, Any]) -> None:
        if row["split"] == "test":
            row["boxes"] = [box("Elsewhere", *SPOTS["Left"])]

    reader = reader_of(make_boxed(change=rename_in_test))
    assert choose_classes(reader, ()) == ["Left", "Right"]
    assert choose_classes(reader, ("Right",)) == ["Right"]
    with pytest.raises(UserError, match=r"detect\.classes: no box of Nodule in the train split; there are Left, Right"):
        choose_classes(reader, ("Right", "Nodule"))


def test_shards_without_boxes_are_refused(make_boxed: Callable[..., str]) -> None:
    reader = reader_of(make_boxed(change=lambda row: row.update(boxes=[])))
    with pytest.raises(UserError, match=r"no boxes in the train split; put a boxes\.csv"):
        choose_classes(reader, ())


@pytest.mark.parametrize(
    ("labels", "boxed", "known"),
    [
        ([0, 0], [], True),  # negative
        ([1, 0], ["Left"], True),
        ([float("nan"), 0], ["Left"], True),  # a box overrides a missing label
        ([float("nan"), 0], [], False),  # not labelled
        ([1, 0], [], False),  # positive without a box
        ([1, 1], ["Left"], False),
        ([1, 1], ["Left", "Right"], True),
    ],
)
def test_an_image_is_used_if_all_classes_are_known(
    make_boxed: Callable[..., str], labels: list[float], boxed: list[str], known: bool
) -> None:
    def change(row: dict[str, Any]) -> None:
        row.update(labels=labels, boxes=[box(name, *SPOTS[name]) for name in boxed])

    found = annotations_of(make_boxed(change=change))
    assert found.known.all() == known and found.known.any() == known
    present = found.present(2)
    assert np.isnan(present).all() if not known else present[0].tolist() == [name in boxed for name in FINDINGS]


def test_without_a_column_of_labels_only_images_with_boxes_are_known(make_boxed: Callable[..., str]) -> None:
    found = annotations_of(make_boxed(), findings=["Something else", "And more"])
    assert found.known.tolist() == [len(boxes) > 0 for boxes in found.boxes]


def test_boxes_are_clipped_to_the_image(make_boxed: Callable[..., str]) -> None:
    found = annotations_of(make_boxed(change=lambda row: row.update(boxes=[box("Left", -3, 20, 10, 40)])))
    assert found.boxes[0].tolist() == [[4, 20, 7, 12]]


@pytest.mark.parametrize("place", [(24.0, 0.0, 5.0, 5.0), (3.0, 3.0, 0.0, 5.0), (-9.0, 0.0, 5.0, 5.0)])
def test_a_box_with_nothing_in_the_image_is_refused(make_boxed: Callable[..., str], place: tuple[float, ...]) -> None:
    folder = make_boxed(change=lambda row: row.update(boxes=[box("Left", *place)]))
    with pytest.raises(UserError, match=r"image image\d+: a box is empty or outside the image; correct boxes\.csv"):
        annotations_of(folder)
