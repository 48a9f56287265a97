"""Near-duplicates on made-up pictures: structure of all sizes on a form that all of them share, as in radiographs."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.fft import dctn

from components.__main__ import main
from components.common.formats.shards import SCHEMA, SCHEMA_VERSION, encode
from components.common.runs import storage
from components.evaluate import fingerprints
from components.evaluate.fingerprints import SIDE, thumbnail
from components.evaluate.params import Duplicates
from components.evaluate.run import duplicates

Picture = npt.NDArray[np.uint8]
SPLITS = ("train", "val", "test")


def picture(number: int, side: int = 160) -> Picture:
    """Returns a picture of the same form as all others and with structure of its own, amplitude falling with frequency."""
    noise = np.random.default_rng(number).normal(size=(side, side))
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    own = np.fft.ifft2(np.fft.fft2(noise) / np.maximum(frequencies, 1 / side) ** 1.3).real
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    form = np.exp(-(((np.abs(x) - 0.45) / 0.3) ** 2) - (y / 0.6) ** 2)
    values = 0.7 * own / own.std() - 3 * form
    return np.rint(255 * (values - values.min()) / np.ptp(values)).astype(np.uint8)


def compressed(image: Picture) -> Picture:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_GRAYSCALE).astype(np.uint8)


def resized(image: Picture) -> Picture:
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[::-1]).astype(np.uint8)


def windowed(image: Picture) -> Picture:
    low, high = np.quantile(image, [0.03, 0.95])
    return np.rint(255 * np.clip((image - low) / (high - low), 0, 1)).astype(np.uint8)


COPIES: dict[str, Callable[[Picture], Picture]] = {
    "compressed": compressed,
    "resized": resized,
    "windowed": windowed,
    "darker": lambda image: (image * 0.7).astype(np.uint8),
    "gamma": lambda image: np.rint(255 * (image / 255) ** 0.6).astype(np.uint8),
    "mirrored": lambda image: image[:, ::-1].copy(),
    "cropped": lambda image: image[5:-4, 6:-5].copy(),
    "cropped above": lambda image: image[8:].copy(),
    "all at once": lambda image: compressed(windowed(image[4:-3, 5:][:, ::-1])),
}


def write_shards(folder: Path, images: list[tuple[str, str, str, Picture]]) -> str:
    """Writes shards of pictures with image, patient and split."""
    folder.mkdir()
    columns = ("image_id", "patient_id", "split")
    rows = [{**encode(image), **dict(zip(columns, names, strict=True)), "labels": [], "boxes": []} for *names, image in images]
    parts = []
    for part in range(2):
        path = folder / f"part-{part:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[part::2], schema=SCHEMA), path, row_group_size=7)
        parts.append({"name": path.name, "rows": len(rows[part::2]), "sha256": storage.digest_file(path)})
    pixels = {"count": 1000, "mean": 0.4, "std": 0.2}
    manifest = {"schema_version": SCHEMA_VERSION, "findings": [], "size": 160, "bits": 8, "train_pixels": pixels, "parts": parts}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "run.json").write_text(json.dumps({"stage": "preprocess"}))
    return str(folder)


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Eighty pictures, and a copy of each kind under the id of its kind, in another split and of another patient."""
    images = [(f"image{number}", f"patient{number}", "train", picture(number)) for number in range(80)]
    copies = [(kind, f"copy of {kind}", "test", copy(picture(number))) for number, (kind, copy) in enumerate(COPIES.items())]
    return write_shards(tmp_path / "shards", images + copies)


def search(shards: list[str], out: Path, backbone: str | None = None, **params: float) -> tuple[dict[str, float], list[dict[str, str]]]:
    duplicates(shards=shards, out=str(out), params=Duplicates(**params), backbone=backbone)
    with (out / "duplicates.csv").open() as file:
        return json.loads((out / "metrics.json").read_text()), list(csv.DictReader(file))


def test_every_kind_of_copy_is_found_and_nothing_else(shards: str, tmp_path: Path) -> None:
    metrics, rows = search([shards], tmp_path / "out")
    expected = {(f"image{number}", kind) for number, kind in enumerate(COPIES)}
    assert {tuple(sorted((row["image_id_1"], row["image_id_2"]), key=lambda name: name in COPIES)) for row in rows} == expected
    turned = {row[f"image_id_{number}"] for row in rows if row["mirrored"] == "1" for number in (1, 2)}
    assert turned & COPIES.keys() == {"mirrored", "all at once"}
    assert metrics["pairs"] == metrics["pairs_across_splits"] == metrics["pairs_train_test"] == len(COPIES)
    assert metrics["test_images_with_copies"] == metrics["pairs_of_two_patients"] == len(COPIES)
    assert metrics["images"] == 80 + len(COPIES)
    page = (tmp_path / "out" / "duplicates.html").read_text()
    assert page.count("<img") == 2 * len(COPIES) and "http" not in page


def test_features_of_a_backbone_must_agree(tmp_path: Path, pretrained: str) -> None:
    images = [(f"image{number}", f"patient{number}", "train", picture(number, 64)) for number in range(12)]
    copies = [("mirror", "mirror", "test", picture(0, 64)[:, ::-1].copy()), ("darker", "darker", "test", picture(1, 64) // 2)]
    shards = write_shards(tmp_path / "shards", images + copies)
    _, rows = search([shards], tmp_path / "all", pretrained, min_cosine=-1)
    cosine = {min(row["image_id_1"], row["image_id_2"]): float(row["cosine"]) for row in rows}
    assert cosine["image0"] == pytest.approx(1, abs=1e-5)  # the mirror image is turned back
    _, rows = search([shards], tmp_path / "alike", pretrained, min_cosine=0.999)
    assert [row["mirrored"] for row in rows] == ["1"] and cosine["darker"] < 0.999


def test_pairs_of_one_patient_and_split_come_last(tmp_path: Path) -> None:
    """Of two folders: the copy in the second one is of another split."""
    first = write_shards(tmp_path / "a", [("a", "p", "train", picture(1)), ("b", "p", "train", compressed(picture(1))),
                                          *((f"{n}", f"{n}", "val", picture(n)) for n in range(10, 30))])  # fmt: skip
    second = write_shards(tmp_path / "b", [("c", "q", "val", resized(picture(1)))])
    metrics, rows = search([first, second], tmp_path / "out")
    assert [(row["split_1"], row["split_2"]) for row in rows] == [("train", "val"), ("train", "val"), ("train", "train")]
    assert (metrics["pairs"], metrics["pairs_of_two_patients"], metrics["pairs_train_val"]) == (3, 2, 2)
    assert [row["cosine"] for row in rows] == ["nan"] * 3


@pytest.mark.parametrize("images", [0, 1, 2, 3])
def test_few_or_blank_images(images: int, tmp_path: Path) -> None:
    blank = np.zeros((160, 120), np.uint8)
    shards = write_shards(tmp_path / "shards", [(f"i{n}", f"p{n}", "train", blank) for n in range(images)])
    metrics, rows = search([shards], tmp_path / "out")
    assert (metrics["images"], metrics["pairs"], rows) == (images, 0, [])


def test_hash_is_of_the_dct(tmp_path: Path) -> None:
    thumbnails = np.stack([thumbnail(picture(number)) for number in range(3)])
    waves = fingerprints._waves(thumbnails, ((0.0, 1.0), (0.0, 1.0)))
    for found, image in zip(waves, thumbnails, strict=True):
        expected = dctn(image.astype(float) - 127.5)[:16, :16]
        expected[0, 0] = 0
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)
    medians = np.zeros((16, 16), np.float32)
    part = thumbnails[:, :, SIDE // 4 : SIDE * 3 // 4]  # the same as looking at the middle half
    mirrored = fingerprints._bits(thumbnails, medians, ((0.0, 1.0), (0.25, 0.75)), True)
    turned = fingerprints._bits(np.stack([cv2.resize(image, (SIDE, SIDE))[:, ::-1] for image in part]), medians, ((0, 1), (0, 1)), False)
    assert (mirrored != turned).mean() < 0.01


def test_work_grows_with_the_number_of_images() -> None:
    """Of all pairs of many unlike images only few are compared closely."""
    generator = np.random.default_rng(0)
    coarse = generator.normal(size=(1500, 16, 16)).astype(np.float32)
    thumbnails = np.stack([cv2.resize(image * 40 + 127, (SIDE, SIDE)).clip(0, 255).astype(np.uint8) for image in coarse])
    thumbnails[1499] = thumbnails[7]
    pairs, mirrored = fingerprints.find_candidates(thumbnails)
    assert [7, 1499] in pairs.tolist() and not mirrored[pairs.tolist().index([7, 1499])]
    assert len(pairs) < 150


def test_only_the_most_alike_of_too_many_candidates_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty pictures that are all alike, two of them the same."""
    monkeypatch.setattr(fingerprints, "_FEW", 1)
    generator = np.random.default_rng(0)
    noisy = [(picture(1, SIDE) * 0.8 + generator.normal(20, 12, (SIDE, SIDE))).clip(0, 255).astype(np.uint8) for _ in range(40)]
    thumbnails = np.stack([thumbnail(image) for image in [*noisy, noisy[3]]])
    pairs, _ = fingerprints.find_candidates(thumbnails)
    assert [3, 40] in pairs.tolist() and len(pairs) <= 2 * len(thumbnails)


def test_command_refuses_what_is_no_backbone(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "params.yaml").write_text("")
    command = ["evaluate", "duplicates", "--shards", shards, "--backbone", shards, "--out", str(tmp_path / "out")]
    assert main([*command, "--params", str(tmp_path / "params.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
