from pathlib import Path

import cv2
import torch

from components.invert.figures import write_rows


def test_a_figure_shows_the_images_in_rows(tmp_path: Path) -> None:
    rows = [torch.zeros(3, 1, 32, 32), torch.ones(3, 1, 32, 32)]
    rows[0][1] = 0.5
    write_rows(tmp_path / "figure.png", rows)
    picture = cv2.imread(str(tmp_path / "figure.png"), cv2.IMREAD_UNCHANGED)
    assert picture.shape == (2 * 132, 3 * 132)
    centres = picture[66::132, 66::132]
    assert centres.tolist() == [[0, 128, 0], [255, 255, 255]]
