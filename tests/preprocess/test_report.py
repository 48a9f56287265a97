import base64
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from components.__main__ import main
from components.common.formats import shards
from components.common.runs.storage import digest_file
from components.preprocess import report_statistics
from components.preprocess.deidentify import ENVIRONMENT_VARIABLE
from components.preprocess.report import render, thumbnail
from components.preprocess.report_statistics import SHOWN, ReportStatistics, age_band
from components.preprocess.rows import BINS, Note
from tests.common.dicom.phantoms import picture, write
from tests.preprocess.test_run import KEY, arguments, manifest_of, rows_of


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY)


class Page(HTMLParser):
    """Collects what a browser would load and show of a page."""

    def __init__(self, content: str):
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("meta", "img", "br", "line", "polyline", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def write_cohort(raw: Path, patients: int = 30) -> None:
    """Writes labelled images of increasing contrast, two per patient, and two files that are refused."""
    lines = ["image,Mass <b>,Nodule"]
    for index in range(patients):
        pixels = (picture(40 + index, 40, seed=index) / 255 * (3 * index + 40) + 60).astype("u1")
        elements = {"ViewPosition": ("PA", "AP", None)[index % 3], "PatientAge": f"{3 * index + 5:03d}Y"}
        write(raw / f"{index}.dcm", pixels, PatientID=f"MRN{index // 2}", PatientSex="FMO"[index % 3], **elements)
        lines.append(f"{index}.dcm,{int(index < 15)},{'' if index % 2 else 0}")
    write(raw / "hand.dcm", picture(seed=99), BodyPartExamined="HAND")
    (raw / "notes.txt").write_text("MRN0")
    (raw / "labels.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_cohort(folder / "raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, KEY)
        assert main(arguments(folder)) == 0
    return folder / "shards"


def test_the_manifest_counts_by_split_and_value(made: Path) -> None:
    counts, rows = manifest_of(made)["counts"], rows_of(made)
    for split in shards.SPLITS:
        of_split = [row for row in rows if row["split"] == split]
        for kind in ("view", "sex", "manufacturer"):
            assert counts[kind][split] == Counter(row[kind] or "unknown" for row in of_split)
        assert counts["age_band"][split] == Counter(age_band(row["age"]) for row in of_split)
        assert sum(counts["age_band"][split].values()) == counts["images"][split] == len(of_split)


@pytest.mark.parametrize(
    ("age", "band"),
    [(0.1, "00-09"), (9.9, "00-09"), (10, "10-19"), (89.9, "80-89"), (90, "90+"), (None, "unknown"), (float("nan"), "unknown")],
)
def test_age_bands(age: float | None, band: str) -> None:
    assert age_band(age) == band


def test_the_report_needs_nothing_but_itself(made: Path) -> None:
    content = (made / "report.html").read_text()
    page = Page(content)
    assert page.open == [] and not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"(src|href)=\"(?!data:)", content) and "url(" not in content and "@import" not in content
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") and image["alt"] for image in page.images)
    assert "Mass <b>" in page.text and "Mass <b>" not in content, "a finding's name was not escaped"


def test_the_contact_sheet_shows_the_extremes_with_their_ids(made: Path) -> None:
    content, rows = (made / "report.html").read_text(), rows_of(made)
    images = {row["image_id"]: shards.decode(row) / 255 for row in rows}
    for title, measure in (("Darkest", np.mean), ("Lowest contrast", np.std)):
        section = content.split(f'<h3 class="group">{title}</h3>')[1].split("<h3")[0]
        expected = sorted(images, key=lambda name: (measure(images[name]), name))[:SHOWN]
        assert re.findall(r"<code>([0-9a-f]{32})</code>", section) == expected
        pictures = re.findall(r"base64,([^\"]+)\"", section)
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(pictures[0]), np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.abs(decoded / 255 - images[expected[0]]).mean() < 0.02


@pytest.mark.parametrize("size", [60, 30])
def test_images_with_few_gray_levels_are_counted_and_shown(size: int, tmp_path: Path) -> None:
    """Resizing blends the levels, but what was lost stays lost."""
    raw = tmp_path / "raw"
    images = [picture(60, 48, 12) // step * step for step in (1, 1, 256, 1000)]
    for index, pixels in enumerate(images):
        write(raw / f"{index}.dcm", pixels, bits=12, PatientID=f"MRN{index}")
    middle = [np.unique(np.clip(pixels, *np.percentile(pixels, [1, 99]))).size for pixels in images]
    assert main(arguments(tmp_path, f"size={size}", "val_fraction=0", "test_fraction=0")) == 0
    counts, content = manifest_of(tmp_path / "shards")["counts"], (tmp_path / "shards" / "report.html").read_text()
    assert counts["few_gray_levels"] == {"train": 2, "val": 0, "test": 0}
    section = content.split('<h3 class="group">Fewest gray levels</h3>')[1].split("<h3")[0]
    assert re.findall(r"<figcaption>(\d+) gray levels<code>", section) == [str(middle[3]), str(middle[2])]
    assert "2 images have fewer than 64 gray levels." in Page(content).text


def test_quarantined_files_are_counted_and_never_shown_or_named(made: Path) -> None:
    content = (made / "report.html").read_text()
    assert "wrong_body_part" in content and "not_dicom" in content
    assert "hand.dcm" not in content and "notes.txt" not in content and "MRN" not in content
    kept = {row["image_id"] for row in rows_of(made)}
    assert set(re.findall(r"<code>([0-9a-f]{32})</code>", content)) <= kept


def test_the_report_does_not_depend_on_processes(tmp_path: Path) -> None:
    write_cohort(tmp_path / "raw", 12)
    for workers in (1, 2):
        assert main(arguments(tmp_path, f"workers={workers}", out=str(workers))) == 0
    for name in ("report.html", "text_suspected.csv", "manifest.json"):
        assert digest_file(tmp_path / "1" / name) == digest_file(tmp_path / "2" / name)


def warnings_of(manifest: dict[str, Any]) -> list[str]:
    """Returns the warnings in the report on a manifest."""
    content = render(manifest, ReportStatistics(), {}).split('<section class="note">')
    return re.findall(r"<li>(.*?)</li>", content[1].split("</section>")[0], re.DOTALL) if len(content) > 1 else []


def test_findings_that_a_split_lacks_are_warned_of(made: Path) -> None:
    manifest = manifest_of(made)
    labels = manifest["counts"]["labels"]
    text = Page((made / "report.html").read_text()).text
    assert labels["train"]["Nodule"]["positive"] == 0 and "Nodule has no positives in training" in text
    labels["train"]["Nodule"].update(positive=4, negative=9)
    labels["val"]["Nodule"].update(positive=5, negative=9)
    labels["test"]["Nodule"].update(positive=7, negative=0)
    (found,) = [line for line in warnings_of(manifest) if "Nodule" in line]
    assert found == "<b>Nodule</b> has only 4 positives in training and no negatives in test."
    labels["train"]["Nodule"]["positive"] = labels["test"]["Nodule"]["negative"] = 5
    assert not any("Nodule" in line for line in warnings_of(manifest))


def test_an_empty_split_and_missing_labels_are_warned_of(made: Path) -> None:
    manifest = manifest_of(made)
    manifest["findings"] = []
    manifest["counts"]["images"]["val"] = 0
    found = warnings_of(manifest)
    assert "The validation split has no images: too few patients (15); add more, or change" in found[0]
    assert any("no labels" in line for line in found)


def test_invented_patients_and_images_in_no_table_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        elements = {"PatientID": None, "StudyInstanceUID": None} if number < 2 else {}
        write(tmp_path / "raw" / f"{number}.dcm", picture(seed=number), **elements)
    (tmp_path / "raw" / "labels.csv").write_text("image,Mass,patient\n0.dcm,1,\n1.dcm,0,one\n3.dcm,0,\n")
    assert main(arguments(tmp_path)) == 0
    manifest = manifest_of(tmp_path / "shards")
    assert manifest["patient_id_invented"] == manifest["patient_id_from"]["file"] == manifest["counts"]["unnamed"] == 1
    found = warnings_of(manifest)
    patients, table = (next(line for line in found if words in line) for words in ("without a patient id", "in no table"))
    assert patients.startswith("1 image without a patient id: the study or the file takes the place")
    assert table == "1 image of 4 in no table: all labels are unknown."
    assert {f"preprocess: {line}" for line in (patients, table)} <= {record.getMessage() for record in caplog.records}


def test_no_warnings_no_list(made: Path) -> None:
    manifest = manifest_of(made)
    manifest["counts"]["few_gray_levels"] = {"train": 0}
    for labels in manifest["counts"]["labels"].values():
        for counts in labels.values():
            counts.update(positive=5, negative=5)
    assert warnings_of(manifest) == []


def row(image_id: str, **values: Any) -> dict[str, Any]:
    base = {
        "split": "train",
        "bits": 8,
        "view": "PA",
        "sex": "F",
        "age": 50.0,
        "manufacturer": "M",
        "source_height": 10,
        "source_width": 10,
    }
    return {"image_id": image_id, **base, **values}


def test_the_statistics_are_bounded_and_keep_the_true_extremes() -> None:
    rng = np.random.default_rng(0)
    pixels = {f"{index:032x}": rng.integers(0, 256, 16) for index in range(500)}
    notes = {
        name: Note(name, "", name, sums=(16, int(values.sum()), int((values**2).sum())), histogram=(16,) + (0,) * (BINS - 1))
        for name, values in pixels.items()
    }
    kept = []
    for names in (list(pixels), list(pixels)[::-1]):
        statistics = ReportStatistics()
        for index, name in enumerate(names):
            statistics.add(row(name), notes[name], "part", index)
        kept.append([(each.value, each.image_id) for each in statistics.extremes["brightest"]])
        assert all(len(each) <= SHOWN for each in statistics.extremes.values()) and statistics.histograms["train"][0] == 16 * 500
    assert kept[0] == kept[1]
    assert [name for _, name in kept[0]] == sorted(pixels, key=lambda name: (-pixels[name].mean(), name))[:SHOWN]


def test_too_many_values_are_counted_as_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_statistics, "MAX_VALUES", 3)
    statistics = ReportStatistics()
    for index in range(10):
        note = Note("", "", None, sums=(1, 1, 1), histogram=(1,) + (0,) * (BINS - 1))
        statistics.add(row(f"{index}", manufacturer=f"MAKER {index % 5}"), note, "part", index)
    assert statistics.counts()["manufacturer"]["train"] == {"MAKER 0": 2, "MAKER 1": 2, "MAKER 2": 2, "other": 4}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_thumbnail_is_a_small_gray_copy_of_the_image(dtype: type) -> None:
    image = np.repeat(np.linspace(0, np.iinfo(dtype).max, 600)[None], 300, 0).astype(dtype)
    height, width, content = thumbnail(image)
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert (height, width) == decoded.shape == (120, 240) and b"Exif" not in content
    np.testing.assert_allclose(decoded[60], np.linspace(0, 255, 240), atol=4)
