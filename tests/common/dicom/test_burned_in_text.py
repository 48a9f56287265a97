from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from components.__main__ import main
from components.common.dicom.burned_in_text import is_text_suspected
from components.preprocess.deidentify import ENVIRONMENT_VARIABLE
from tests.common.dicom.phantoms import write
from tests.preprocess.test_run import KEY, arguments, manifest_of, rows_of

Image = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY)


def chest(seed: int = 0, size: int = 512) -> Image:
    """Returns an image of two dark lungs with ribs in a bright trunk on a dark, noisy background."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    trunk = np.exp(-(((x - 0.5) / 0.38) ** 6)) * (0.55 + 0.35 * y)
    lungs = sum(np.exp(-((((x - cx) / 0.13) ** 2 + ((y - 0.42) / 0.27) ** 2) ** 2)) for cx in (0.32, 0.68 + rng.normal(0, 0.01)))
    ribs = 0.08 * np.sin(60 * (y + 0.6 * (x - 0.5) ** 2) + rng.normal()) * lungs
    image = cv2.GaussianBlur(np.clip(trunk - 0.45 * lungs + ribs, 0, 1), (0, 0), 2) + rng.normal(0, 0.015, (size, size))
    return np.clip(255 * image, 0, 255).astype(np.uint8)


def draw_text(image: Image, text: str, place: tuple[float, float], height: int = 10, value: int = 255) -> Image:
    """Draws text with capitals of `height` pixels; `place` is its lower left corner (x, y) as fractions of the image size."""
    scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_SIMPLEX, height)
    at = round(place[0] * image.shape[1]), round(place[1] * image.shape[0])
    return np.asarray(cv2.putText(image.copy(), text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, value, 1, cv2.LINE_AA), np.uint8)


PLACES = {"top left": (0.02, 0.05), "bottom left": (0.02, 0.97), "top right": (0.68, 0.05), "bottom right": (0.68, 0.97)}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("text", ["DOE JOHN", "12-03-1957", "MRN 5550123"])
@pytest.mark.parametrize("height", [8, 12, 18])
def test_text_in_a_corner_on_a_dark_ground(place: tuple[float, float], text: str, height: int) -> None:
    image = chest()
    image[:] = np.where(np.add.outer(np.zeros(512), np.abs(np.arange(512) - 256)) > 180, image // 4, image)
    image[:60] //= 4
    image[-60:] //= 4
    assert not is_text_suspected(image)
    assert is_text_suspected(draw_text(image, text, place, height))


def test_chests_without_text_are_not_suspected() -> None:
    assert [seed for seed in range(40) if is_text_suspected(chest(seed))] == []


def test_a_side_marker_alone_is_no_text() -> None:
    assert not any(is_text_suspected(draw_text(chest(), letter, (0.9, 0.08), 16)) for letter in "LR")


def test_text_in_the_middle_is_not_looked_for() -> None:
    assert not is_text_suspected(draw_text(chest(), "DOE JOHN", (0.35, 0.5)))


def test_text_at_an_edge_outside_the_corners() -> None:
    assert is_text_suspected(draw_text(chest() // 3, "DOE JOHN", (0.4, 0.05)))


def test_sixteen_bits_are_judged_like_eight() -> None:
    plain, labelled = chest(), draw_text(chest(), "DOE JOHN", PLACES["top left"])
    assert [is_text_suspected(image.astype(np.uint16) * 257) for image in (plain, labelled)] == [False, True]


def test_dark_text_is_found_on_request() -> None:
    inverted = draw_text(255 - chest(), "LTLTL", (0.02, 0.07), 18, value=0)
    assert is_text_suspected(inverted, dark=True) and not is_text_suspected(inverted)


@pytest.mark.parametrize("image", [np.zeros((512, 512)), np.full((16, 16), 255), np.random.default_rng(0).integers(0, 256, (512, 400))])
def test_degenerate_pictures_do_not_raise(image: npt.NDArray[np.generic]) -> None:
    is_text_suspected(image.astype(np.uint8))


@pytest.fixture
def two_images(tmp_path: Path) -> Path:
    write(tmp_path / "raw" / "plain.dcm", chest())
    write(tmp_path / "raw" / "labelled.dcm", draw_text(chest(1), "DOE JOHN 5550123", PLACES["top left"]))
    return tmp_path


def test_suspected_text_is_counted_and_listed(two_images: Path) -> None:
    assert main(arguments(two_images, "size=512")) == 0
    folder = two_images / "shards"
    counts = manifest_of(folder)["counts"]
    assert counts["rows"] == 2 and sum(counts["text_suspected"].values()) == 1
    (listed,) = pc.read_csv(folder / "text_suspected.csv").to_pylist()
    (row,) = [row for row in rows_of(folder) if row["image_id"] == listed["image_id"]]
    assert counts["text_suspected"][listed["split"]] == 1 and row["split"] == listed["split"]
    assert listed["image_id"] in {row["image_id"] for row in rows_of_part(folder, listed["part"])}
    report = (folder / "report.html").read_text()
    assert "found near an edge of 1 image (50.0 %" in report and "text_suspected.csv" in report
    assert f"<code>{listed['image_id']}</code>" not in report, "a suspected image was shown"


def rows_of_part(folder: Path, name: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(folder / name).to_pylist()
    return rows


def test_suspected_text_is_quarantined_on_request(two_images: Path) -> None:
    assert main(arguments(two_images, "size=512", "text_check=quarantine")) == 0
    counts = manifest_of(two_images / "shards")["counts"]
    assert counts["reasons"] == {"burned_in_text": 1} and counts["rows"] == 1


def test_the_check_can_be_switched_off_and_the_report_says_so(two_images: Path) -> None:
    assert main(arguments(two_images, "size=512", "text_check=off")) == 0
    counts = manifest_of(two_images / "shards")["counts"]
    assert counts["rows"] == 2 and sum(counts["text_suspected"].values()) == 0
    assert "Text was not searched for" in (two_images / "shards" / "report.html").read_text()
