from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from components.common.runs.shards import open_shards
from components.common.training.reader import Reader
from components.detect import figures
from components.detect.annotations import COLUMNS, annotate
from components.detect.predictions import Found
from tests.conftest import FINDINGS

NOTHING = Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))


def test_figures_of_hits_misses_and_false_positives(make_boxed: Callable[..., str], tmp_path: Path) -> None:
    folder = make_boxed()
    reader = Reader(open_shards(folder), "train", COLUMNS)
    known = annotate(reader, FINDINGS, FINDINGS)
    found = [NOTHING] * len(reader)
    hit = next(row for row in np.flatnonzero(known.known) if len(known.boxes[row]) == 1)
    alarm = next(row for row in np.flatnonzero(known.known) if not len(known.boxes[row]))
    found[hit] = Found(known.boxes[hit], np.array([0.9]), known.labels[hit])
    found[alarm] = Found(np.array([[6.0, 4, 10, 10], [8, 8, 5, 5]]), np.array([0.8, 0.2]), np.array([1, 0]))
    figures.draw(tmp_path / "figures", reader, found, known, FINDINGS, threshold=0.5)

    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["false_positive_1.png", "hit_1.png", "miss_1.png", "miss_2.png"]
    picture = cv2.imread(str(tmp_path / "figures" / "false_positive_1.png"))
    assert picture.shape == (480, 360, 3)  # 32 x 24 px, enlarged 15 times, without the padding to a square
    drawn = (picture == figures.FALSE_POSITIVE).all(axis=2)
    columns = np.flatnonzero(drawn[4 * 15 + 60 : 14 * 15 - 3].any(axis=0))
    assert abs(columns.min() - (6 - 4) * 15) <= 2 and abs(columns.max() - (16 - 4) * 15) <= 2
    assert not (picture == figures.HIT).all(axis=2).any()
    hit_picture = cv2.imread(str(tmp_path / "figures" / "hit_1.png"))
    assert (hit_picture == figures.HIT).all(axis=2).any() and not (hit_picture == figures.FALSE_POSITIVE).all(axis=2).any()
