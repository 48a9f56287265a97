"""Statistics for the data report, row by row: counts, histograms, and the most extreme images.

Memory does not grow with the number of rows, and the result does not depend on who made the parts.
"""

import math
import shutil
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from components.common.formats import shards
from components.common.html.numbers import plural
from components.preprocess.deidentify import MAX_AGE
from components.preprocess.rows import BINS, Note

COLUMNS = ("image_id", "split", "bits", "view", "sex", "age", "manufacturer", "source_height", "source_width")
"""Columns of the shards that are needed here."""
TEXT_SUSPECTED = "text_suspected.csv"
KINDS = ("view", "sex", "manufacturer", "age_band")
UNKNOWN = "unknown"
SHOWN = 6  # number of images per kind of extreme
FEW_LEVELS = 64  # fewer gray levels are worth a look: 718 real radiographs of three data sets all have more than 120
NARROW = 1.3  # minimum ratio of the longer to the shorter side of a narrow image
_BAND = 10
MAX_VALUES = 200  # maximum number of distinct values per kind; free text could have any number
OTHER = "other"


class ImageStatistics(NamedTuple):
    """Values by which an image can be extreme."""

    image_id: str
    mean: float  # mean of its pixels, as a fraction of the full range
    std: float
    height: int  # height of the source, in pixels
    width: int
    levels: int  # number of gray levels of all but the darkest and the brightest hundredth of its pixels

    @property
    def aspect(self) -> float:
        """Ratio of the longer to the shorter side."""
        return max(self.height, self.width) / min(self.height, self.width)


class Extreme(NamedTuple):
    """A kind of extreme."""

    name: str
    measure: Callable[[ImageStatistics], float]  # the images with the lowest values are kept, except infinity
    describe: Callable[[ImageStatistics], str]


EXTREMES = (
    Extreme("darkest", lambda image: image.mean, lambda image: f"mean {image.mean:.3f}"),
    Extreme("brightest", lambda image: -image.mean, lambda image: f"mean {image.mean:.3f}"),
    Extreme("lowest contrast", lambda image: image.std, lambda image: f"SD {image.std:.3f}"),
    Extreme("highest contrast", lambda image: -image.std, lambda image: f"SD {image.std:.3f}"),
    Extreme(
        "fewest gray levels",
        lambda image: image.levels if image.levels < FEW_LEVELS else math.inf,
        lambda image: plural(image.levels, "gray level"),
    ),
    Extreme("smallest source", lambda image: image.height * image.width, lambda image: f"{image.width} × {image.height} pixels"),
    Extreme(
        "narrowest",
        lambda image: -image.aspect if image.aspect >= NARROW else math.inf,
        lambda image: f"{image.width} × {image.height} pixels",
    ),
)


class ExtremeImage(NamedTuple):
    """One of the most extreme images; they sort by how extreme they are."""

    value: float
    image_id: str
    part: str  # file name of its part
    row: int  # index of its row in the part
    note: str  # the measured value, in words


@dataclass
class ReportStatistics:
    """Statistics that grow by one row at a time."""

    values: dict[str, dict[str, Counter[str]]] = field(
        default_factory=lambda: {kind: {split: Counter() for split in shards.SPLITS} for kind in KINDS}
    )
    """Kind -> split -> value -> number of rows."""
    histograms: dict[str, Any] = field(default_factory=lambda: {split: np.zeros(BINS, np.int64) for split in shards.SPLITS})
    """Split -> number of pixels by brightness (BINS,)."""
    few_levels: Counter[str] = field(default_factory=Counter)
    """Split -> number of images with fewer than FEW_LEVELS gray levels."""
    text_suspected: Counter[str] = field(default_factory=Counter)
    text_rows: IO[str] = field(default_factory=lambda: TemporaryFile("w+", encoding="ascii", newline=""))  # noqa: SIM115
    """The rows with suspected text as lines of CSV, on disk since there can be many."""
    extremes: dict[str, list[ExtremeImage]] = field(default_factory=lambda: {extreme.name: [] for extreme in EXTREMES})
    """The SHOWN most extreme images of each kind, without those with suspected text, since the report shows them."""

    def add(self, row: Mapping[str, Any], note: Note, part: str, index: int) -> None:
        """Adds a row (at least COLUMNS), with the note about its file, the file name of its part and its index there."""
        split = row["split"]
        known = {**{kind: row.get(kind) for kind in KINDS}, "age_band": age_band(row["age"])}
        for kind, value in known.items():
            self._count(self.values[kind][split], value or UNKNOWN)
        self.histograms[split] += np.array(note.histogram, np.int64)
        self.few_levels[split] += note.levels < FEW_LEVELS
        if note.text:
            self.text_suspected[split] += 1
            self.text_rows.write(f"{row['image_id']},{split},{part}\n")
        else:
            self._keep_if_extreme(_measure(row, note), part, index)

    def counts(self) -> dict[str, Any]:
        """Returns entries of the manifest: kind -> split -> value -> number of rows, and rows with few gray levels or suspected text."""
        tables = {kind: {split: dict(sorted(counter.items())) for split, counter in splits.items()} for kind, splits in self.values.items()}
        few = {"few_gray_levels": self.few_levels, "text_suspected": self.text_suspected}
        return {**tables, **{name: {split: counter[split] for split in shards.SPLITS} for name, counter in few.items()}}

    def write_text_suspected(self, path: Path) -> None:
        """Writes the list of rows with suspected text: image_id, split and part."""
        self.text_rows.seek(0)
        with path.open("w", encoding="ascii", newline="") as file:
            file.write("image_id,split,part\n")
            shutil.copyfileobj(self.text_rows, file)

    def _count(self, counter: Counter[str], value: str) -> None:
        counter[value if value in counter or len(counter) < MAX_VALUES else OTHER] += 1

    def _keep_if_extreme(self, image: ImageStatistics, part: str, index: int) -> None:
        for extreme in EXTREMES:
            kept = self.extremes[extreme.name]
            value = extreme.measure(image)
            # Ties are broken by id, so that the order of the rows is irrelevant.
            if value < math.inf and (len(kept) < SHOWN or (value, image.image_id) < kept[-1][:2]):
                insort(kept, ExtremeImage(value, image.image_id, part, index, extreme.describe(image)))
                del kept[SHOWN:]


def age_band(age: float | None) -> str:
    """Returns a band of ten years, such as 50-59; 90+ for the cap."""
    if age is None or math.isnan(age):
        return UNKNOWN
    start = int(age) // _BAND * _BAND
    return f"{start}+" if start >= MAX_AGE else f"{start:02d}-{start + _BAND - 1:02d}"


def load_pixels(folder: Path, image: ExtremeImage) -> shards.Pixels:
    """Reads the pixels (H, W) of an extreme image from its part in `folder`."""
    with pq.ParquetFile(folder / image.part) as file:
        ends = list(accumulate(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)))
        group = bisect_right(ends, image.row)
        table = file.read_row_group(group, columns=shards.PACKED)
    row = table.slice(image.row - ends[group] + table.num_rows, 1).to_pylist()[0]
    assert row["image_id"] == image.image_id
    return shards.decode(row)


def _measure(row: Mapping[str, Any], note: Note) -> ImageStatistics:
    count, total, squares = note.sums
    full = 2 ** row["bits"] - 1
    std = math.sqrt(squares * count - total**2) / count / full
    return ImageStatistics(row["image_id"], total / count / full, std, row["source_height"], row["source_width"], note.levels)
