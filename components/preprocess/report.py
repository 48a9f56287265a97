"""`report.html`: one file that shows what is in the shards, what was left out, and what to check before training.

It holds pictures of patients: it stays with the shards and is not sent to MLflow. Self-contained and the same bytes for the same
shards: no scripts, no network, no times, no raw paths or ids. Quarantined files are only counted.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from components.common.dicom.render import resize
from components.common.formats.manifest import Manifest
from components.common.formats.pages import REPORT
from components.common.formats.quarantine import Reason
from components.common.formats.shards import SPLITS, Pixels
from components.common.html import page
from components.common.html.charts import UNIT, Axis, Chart, Line, nice_axis
from components.common.html.numbers import plural
from components.common.runs import storage
from components.preprocess.report_statistics import (
    EXTREMES,
    FEW_LEVELS,
    KINDS,
    TEXT_SUSPECTED,
    UNKNOWN,
    ExtremeImage,
    ReportStatistics,
    load_pixels,
)
from components.preprocess.rows import BINS

MIN_POSITIVES = 5  # per finding and split; the report warns of fewer, since metrics on them say little
THUMBNAIL = 240  # longer side of a picture, in pixels
JPEG_QUALITY = 82
STYLES = {"train": "first", "val": "second", "test": "third"}
SPLIT_NAMES = {"train": "Training", "val": "Validation", "test": "Test"}
TITLES = {"view": "View", "sex": "Sex", "manufacturer": "Manufacturer", "age_band": "Age in years"}
SEXES = {"F": "female", "M": "male", "O": "other"}
MEANINGS = {
    Reason.NOT_A_FILE: "a link that leads nowhere or back, a named pipe, a socket or a device",
    Reason.NOT_DICOM: "neither DICOM nor a picture",
    Reason.NO_PIXELS: "no image in it",
    Reason.WRONG_MODALITY: "neither CR nor DX",
    Reason.WRONG_BODY_PART: "not of the chest",
    Reason.WRONG_VIEW: "a view that is not among preprocess.views",
    Reason.UNSUPPORTED_PHOTOMETRIC: "colour, or another encoding of gray than MONOCHROME1 and 2",
    Reason.BURNED_IN_TEXT: "tagged as having text in the pixels, or refused by preprocess.text_check",
    Reason.UNREADABLE: "truncated, undecodable, or pixels that do not fit the header",
    Reason.IMPLAUSIBLE_SIZE: "too small, too large or too narrow for a chest",
    Reason.BLANK_IMAGE: "one value everywhere, or nothing but padding",
    Reason.CONFLICTING_UID: "different images have the same SOPInstanceUID, so that ids, labels and patients cannot be trusted",
}


class Shortage(NamedTuple):
    """Too few labels of a finding in a split."""

    kind: str  # positive or negative
    labels: int
    split: str


class Bar(NamedTuple):
    """A share of a split, drawn as a bar."""

    split: str
    images: int
    share: float  # NaN if unknown
    width: float  # relative to the longest bar of the table


class Group(NamedTuple):
    """The images that share a value, such as a manufacturer."""

    name: str
    images: int
    unknown: bool
    bars: list[Bar]


def write(folder: Path, manifest: Manifest, statistics: ReportStatistics) -> None:
    """Writes the report on the parts in `folder`, and the list of images with suspected text."""
    statistics.write_text_suspected(folder / TEXT_SUSPECTED)
    pictures = {extreme.name: [(kept, load_pixels(folder, kept)) for kept in statistics.extremes[extreme.name]] for extreme in EXTREMES}
    storage.write(str(folder / REPORT), render(manifest, statistics, pictures).encode())


def render(manifest: Manifest, statistics: ReportStatistics, pictures: Mapping[str, Sequence[tuple[ExtremeImage, Pixels]]]) -> str:
    """Renders report.html; `pictures` holds the images that stand out, by kind of extreme."""
    counts = manifest["counts"]
    return page.render(
        "preprocess/report.html",
        manifest=manifest,
        counts=counts,
        names=SPLIT_NAMES,
        styles=STYLES,
        ratio=_ratio,
        notices=empty_splits(manifest) + shared_pictures(manifest) + unmatched(manifest),
        shortages=_shortages(manifest),
        mostly_unknown=_mostly_unknown(counts),
        min_positives=MIN_POSITIVES,
        few_levels=FEW_LEVELS,
        prevalence=_prevalence(manifest),
        box_labels=sorted({name for split in SPLITS for name in counts["boxes"][split]}),
        kinds=TITLES,
        groups={kind: _groups(kind, counts) for kind in KINDS},
        brightness=_brightness(statistics),
        pictures={name: [(kept, *thumbnail(pixels)) for kept, pixels in images] for name, images in pictures.items()},
        text_suspected=TEXT_SUSPECTED,
        meanings={reason.value: MEANINGS[reason] for reason in Reason},
        identified_by=[f"{name} ({plural(count, 'image')})" for name, count in manifest["patient_id_from"].items()],
    )


def empty_splits(manifest: Manifest) -> list[str]:
    """Returns a sentence for each split without images."""
    patients = sum(manifest["counts"]["patients"].values())
    cause = f"too few patients ({patients}); add more, or change preprocess.val_fraction and preprocess.test_fraction"
    return [f"The {SPLIT_NAMES[split].lower()} split has no images: {cause}." for split in _empty(manifest["counts"])]


def shared_pictures(manifest: Manifest) -> list[str]:
    """Returns a sentence if different splits have images with the same pixels."""
    count = manifest["counts"]["same_pixels"]["across_splits"]
    advice = "give the same patient to both, or remove one; `evaluate duplicates` lists them and finds altered copies"
    return [f"{plural(count, 'image')} have the pixels of an image in another split: {advice}."] if count else []


def unmatched(manifest: Manifest) -> list[str]:
    """Returns sentences about images whose patient or labels are not known."""
    counts, found = manifest["counts"], []
    if manifest["patient_id_invented"]:
        images = plural(manifest["patient_id_invented"], "image")
        advice = "one person can be in several splits; name the patients in the header or the table"
        found.append(f"{images} without a patient id: the study or the file takes the place of the patient, so that {advice}.")
    if manifest["findings"] and manifest["labels"] and counts["unnamed"]:
        found.append(f"{plural(counts['unnamed'], 'image')} of {counts['rows']} in no table: all labels are unknown.")
    return found


def thumbnail(pixels: Pixels) -> tuple[int, int, bytes]:
    """Encodes an image (H, W) as JPEG of at most THUMBNAIL pixels, without metadata; returns height, width and content."""
    image = np.asarray(pixels, np.float32) * (255 / np.iinfo(pixels.dtype).max)
    if max(image.shape) > THUMBNAIL:
        image = resize(image, THUMBNAIL)
    done, content = cv2.imencode(".jpg", np.rint(image).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    return image.shape[0], image.shape[1], content.tobytes()


def _empty(counts: Mapping[str, Any]) -> list[str]:
    return [split for split in SPLITS if not counts["images"][split]]


def _shortages(manifest: Manifest) -> dict[str, list[Shortage]]:
    """Finds splits that have images but too few labels, by finding."""
    counts = manifest["counts"]
    present = [split for split in SPLITS if split not in _empty(counts)]
    short = {name: [each for split in present for each in _lacking(split, counts["labels"][split][name])] for name in manifest["findings"]}
    return {name: each for name, each in short.items() if each}


def _lacking(split: str, labels: Mapping[str, int]) -> list[Shortage]:
    """The worst shortage in one split, if any."""
    for kind, minimum in (("positive", 1), ("negative", 1), ("positive", MIN_POSITIVES)):
        if labels[kind] < minimum:
            return [Shortage(kind, labels[kind], split)]
    return []


def _mostly_unknown(counts: Mapping[str, Any]) -> dict[str, float]:
    """The share of images with an unknown value, of the kinds in which that is more than half."""
    unknown = {kind: sum(counts[kind][split].get(UNKNOWN, 0) for split in SPLITS) for kind in KINDS}
    shares = {kind: _ratio(count, sum(counts["images"].values())) for kind, count in unknown.items()}
    return {kind: share for kind, share in shares.items() if share > 0.5}


def _prevalence(manifest: Manifest) -> dict[str, list[Bar]]:
    labels = manifest["counts"]["labels"]
    bars = {
        finding: [_bar(split, (each := labels[split][finding])["positive"], each["positive"] + each["negative"]) for split in SPLITS]
        for finding in manifest["findings"]
    }
    return _scaled(bars)


def _groups(kind: str, counts: Mapping[str, Any]) -> list[Group]:
    """The images by value: age bands in order, other values by falling number of images, unknown last."""
    by_split, images = counts[kind], counts["images"]
    totals = {value: sum(by_split[split].get(value, 0) for split in SPLITS) for split in SPLITS for value in by_split[split]}
    bars = _scaled({value: [_bar(split, by_split[split].get(value, 0), images[split]) for split in SPLITS] for value in totals})
    order = sorted(totals, key=lambda value: (value == UNKNOWN, 0 if kind == "age_band" else -totals[value], value))
    return [Group(SEXES.get(value, value) if kind == "sex" else value, totals[value], value == UNKNOWN, bars[value]) for value in order]


def _bar(split: str, count: int, total: int) -> Bar:
    return Bar(split, count, _ratio(count, total), 0.0)


def _scaled(bars: Mapping[str, list[Bar]]) -> dict[str, list[Bar]]:
    longest = max((bar.share for row in bars.values() for bar in row if math.isfinite(bar.share)), default=0.0) or 1.0
    return {
        name: [bar._replace(width=bar.share / longest if math.isfinite(bar.share) else 0.0) for bar in row] for name, row in bars.items()
    }


def _brightness(statistics: ReportStatistics) -> Chart:
    """The share of the pixels by brightness, one line per split."""
    lines, highest = [], 0.0
    for split in reversed(SPLITS):  # training on top
        counts = statistics.histograms[split]
        if counts.any():
            shares = (100 * counts / counts.sum()).tolist()
            highest = max(highest, *shares)
            points = [(edge / BINS, share) for index, share in enumerate(shares) for edge in (index, index + 1)]
            lines.append(Line(points, STYLES[split]))
    y = nice_axis([0.0, highest], "% of the pixels")
    return Chart(lines, Axis(0, 1, UNIT, "Brightness, from black to white"), y, width=980, height=260)


def _ratio(count: int, total: int) -> float:
    return count / total if total else math.nan
