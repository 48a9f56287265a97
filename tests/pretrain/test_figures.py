from pathlib import Path

import cv2
import numpy as np
import pytest

from components.pretrain import figures
from components.pretrain.figures import CAPTION, GAP, MARGIN, SIDE


@pytest.mark.parametrize("size", [(64, 48), (512, 512)])
def test_rows_stand_in_their_order(tmp_path: Path, size: tuple[int, int]) -> None:
    levels = np.arange(1, 9, dtype=np.float32) / 10
    queries = np.broadcast_to(levels[:, None, None], (8, *size))
    keys = 1 - queries
    figures.write_views(tmp_path / "figures" / "views.png", {"query": queries, "key": keys}, [f"{index:032x}" for index in range(8)])
    image = cv2.imread(str(tmp_path / "figures" / "views.png"), cv2.IMREAD_UNCHANGED)
    factor = min(1, SIDE / max(size))
    height, width = (round(factor * side) for side in size)
    assert image.shape == (CAPTION + 2 * (height + GAP), MARGIN + 8 * (width + GAP))
    for column, level in enumerate(levels):
        left = MARGIN + column * (width + GAP)
        for row, value in enumerate((level, 1 - level)):
            top = CAPTION + row * (height + GAP)
            np.testing.assert_allclose(image[top : top + height, left : left + width], 255 * float(value), atol=1)


def test_each_column_is_headed_by_its_own_id() -> None:
    view = np.zeros((2, 80, 80), np.float32)

    def captions(ids: list[str]) -> list[np.ndarray]:
        strip = figures.draw_views({"query": view, "key": view}, ids)[:CAPTION, MARGIN:]
        return [strip[:, :80], strip[:, 80 + GAP : 160 + GAP]]

    same = captions(["01234567" + "a" * 24, "01234567" + "b" * 24])
    assert (same[0] < 128).sum() > 20
    np.testing.assert_array_equal(*same)  # captions show eight digits of the id
    other = captions(["01234567", "f1234567"])
    assert (other[0] != other[1]).any()
