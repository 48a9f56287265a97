"""What the data report shows, gathered row by row: counts, histograms, and the images that stand out.

Memory does not grow with the number of rows. Rows come in the order of the parts, whoever made these.
"""

import math
import shutil
from bisect import insort
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from components.common.formats import shards
from components.preprocess.deidentify import MAX_AGE
from components.preprocess.rows import BINS, Note

COLUMNS = ("image_id", "split", "bits", "view", "sex", "age", "manufacturer", "source_height", "source_width")
"""Of a row, that are looked at."""
TEXT_SUSPECTED = "text_suspected.csv"
KINDS = ("view", "sex", "manufacturer", "age_band")
UNKNOWN = "unknown"
SHOWN = 6
"""Images of each kind of extreme."""
NARROW = 1.3
"""Longer to shorter side from which an image counts as narrow."""
_BAND = 10
MAX_VALUES = 200
"""Different values of one kind that are counted by name; a free text could have any number."""
OTHER = "other"


class Image(NamedTuple):
    """A row as far as its extremes go."""

    image_id: str
    mean: float
    """Of its pixels, as a fraction of the full range."""
    std: float
    height: int
    """Of the source, in pixels."""
    width: int


class Extreme(NamedTuple):
    """A way to stand out."""

    name: str
    measure: Callable[[Image], float]
    """The lowest values are kept; infinity: not at all."""
    describe: Callable[[Image], str]


EXTREMES = (
    Extreme("darkest", lambda image: image.mean, lambda image: f"mean {image.mean:.3f}"),
    Extreme("brightest", lambda image: -image.mean, lambda image: f"mean {image.mean:.3f}"),
    Extreme("lowest contrast", lambda image: image.std, lambda image: f"SD {image.std:.3f}"),
    Extreme("highest contrast", lambda image: -image.std, lambda image: f"SD {image.std:.3f}"),
    Extreme("smallest source", lambda image: image.height * image.width, lambda image: f"{image.width} × {image.height} pixels"),
    Extreme(
        "narrowest",
        lambda image: -_aspect(image) if _aspect(image) >= NARROW else math.inf,
        lambda image: f"{image.width} × {image.height} pixels",
    ),
)


class ExtremeImage(NamedTuple):
    """An image that stands out, in the order of how much."""

    value: float
    image_id: str
    part: str
    """File name of the part that holds it."""
    row: int
    """Its index there."""
    note: str
    """By how much, in words."""


@dataclass
class ReportStatistics:
    """Grows by one row at a time."""

    values: dict[str, dict[str, Counter[str]]] = field(
        default_factory=lambda: {kind: {split: Counter() for split in shards.SPLITS} for kind in KINDS}
    )
    """Kind -> split -> value -> number of rows."""
    histograms: dict[str, Any] = field(default_factory=lambda: {split: np.zeros(BINS, np.int64) for split in shards.SPLITS})
    """Split -> number of pixels (BINS,) by brightness."""
    text_suspected: Counter[str] = field(default_factory=Counter)
    """Split -> number of rows with what looks like text."""
    text_rows: IO[str] = field(default_factory=lambda: TemporaryFile("w+", encoding="ascii", newline=""))  # noqa: SIM115
    """Which rows these are, as lines of CSV; on disk, since there can be many."""
    extremes: dict[str, list[ExtremeImage]] = field(default_factory=lambda: {extreme.name: [] for extreme in EXTREMES})
    """The SHOWN most extreme images of each kind. None with suspected text is among them: they are shown as pictures."""

    def add(self, row: Mapping[str, Any], note: Note, part: str, index: int) -> None:
        """Takes in a row.

        Args:
            row: at least COLUMNS.
            note: about its file.
            part: file name of the part that holds it.
            index: of the row there.
        """
        split = row["split"]
        known = {**{kind: row.get(kind) for kind in KINDS}, "age_band": age_band(row["age"])}
        for kind, value in known.items():
            self._count(self.values[kind][split], value or UNKNOWN)
        self.histograms[split] += np.array(note.histogram, np.int64)
        if note.text:
            self.text_suspected[split] += 1
            self.text_rows.write(f"{row['image_id']},{split},{part}\n")
        else:
            self._keep(_image(row, note), part, index)

    def counts(self) -> dict[str, Any]:
        """For the manifest: kind -> split -> value -> number of rows, and the rows with what looks like text."""
        tables = {kind: {split: dict(sorted(counter.items())) for split, counter in splits.items()} for kind, splits in self.values.items()}
        return {**tables, "text_suspected": {split: self.text_suspected[split] for split in shards.SPLITS}}

    def write_text_suspected(self, path: Path) -> None:
        """Lists the rows with what looks like text: image_id, split and part."""
        self.text_rows.seek(0)
        with path.open("w", encoding="ascii", newline="") as file:
            file.write("image_id,split,part\n")
            shutil.copyfileobj(self.text_rows, file)

    def _count(self, counter: Counter[str], value: str) -> None:
        counter[value if value in counter or len(counter) < MAX_VALUES else OTHER] += 1

    def _keep(self, image: Image, part: str, index: int) -> None:
        for extreme in EXTREMES:
            kept = self.extremes[extreme.name]
            value = extreme.measure(image)
            # Ties go by the id, whatever order the rows come in.
            if value < math.inf and (len(kept) < SHOWN or (value, image.image_id) < kept[-1][:2]):
                insort(kept, ExtremeImage(value, image.image_id, part, index, extreme.describe(image)))
                del kept[SHOWN:]


def age_band(age: float | None) -> str:
    """Ten years, such as 50-59; 90+ as ages are capped there."""
    if age is None or math.isnan(age):
        return UNKNOWN
    start = int(age) // _BAND * _BAND
    return f"{start}+" if start >= MAX_AGE else f"{start:02d}-{start + _BAND - 1:02d}"


def load_pixels(folder: Path, kept: ExtremeImage) -> shards.Pixels:
    """The picture of an image that stands out.

    Args:
        folder: of the finished parts.
        kept: where it is.

    Returns:
        (H, W).
    """
    with pq.ParquetFile(folder / kept.part) as file:
        group, start = 0, 0
        while start + file.metadata.row_group(group).num_rows <= kept.row:
            start += file.metadata.row_group(group).num_rows
            group += 1
        table = file.read_row_group(group, columns=["image_id", "pixels", "codec", "height", "width", "bits"])
    row = table.slice(kept.row - start, 1).to_pylist()[0]
    assert row["image_id"] == kept.image_id
    return shards.decode(row)


def _image(row: Mapping[str, Any], note: Note) -> Image:
    count, total, squares = note.sums
    full = 2 ** row["bits"] - 1
    std = math.sqrt(squares * count - total**2) / count / full
    return Image(row["image_id"], total / count / full, std, row["source_height"], row["source_width"])


def _aspect(image: Image) -> float:
    return max(image.height, image.width) / min(image.height, image.width)
