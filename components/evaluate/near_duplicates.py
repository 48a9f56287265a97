"""Near-duplicates in shards: pairs of images that are (nearly) the same picture, above all in different splits or of different patients.

Candidates share most of a perceptual hash (components/evaluate/fingerprints.py); a pair is reported if its fine structure correlates
once aligned and, where a backbone is given, if its features agree.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from components.common.formats.shards import SPLITS, Pixels
from components.common.runs.cores import threads
from components.common.runs.shards import Shards, map_images
from components.common.statistics.arrays import Flags, Floats, Integers, divide
from components.evaluate import fingerprints
from components.evaluate.params import Duplicates

LIST = "duplicates.csv"
THUMBNAILS = "thumbnails.npy"  # in the work folder: 16 kB per image
_ROWS = 128  # rows that are decoded at a time
_SAMPLE = 512  # images whose mean features are subtracted

Features = Callable[[Sequence[Pixels]], Floats]
"""From images to their features (N, C)."""


class Image(NamedTuple):
    """A row of the shards."""

    image_id: str
    patient_id: str
    split: str


class Pair(NamedTuple):
    """Two images that are nearly the same picture."""

    first: Image
    second: Image
    mirrored: bool  # whether one is the mirror image of the other
    correlation: float  # of the fine structure, aligned
    cosine: float  # between the features; NaN without a backbone
    rows: tuple[int, int]  # their positions in the shards

    @property
    def crosses(self) -> bool:
        """Whether the images are in different splits."""
        return self.first.split != self.second.split

    @property
    def two_patients(self) -> bool:
        """Whether the images are of different patients."""
        return self.first.patient_id != self.second.patient_id


class Found(NamedTuple):
    """The result of a search."""

    images: int
    candidates: int
    pairs: list[Pair]  # those in different splits first, then those of different patients; the most alike first
    pictures: list[tuple[fingerprints.Thumbnails, fingerprints.Thumbnails]]  # of the first pairs

    def metrics(self) -> dict[str, float]:
        """Returns entries of metrics.json."""
        across = {f"pairs_{a}_{b}": {a, b} for a, b in combinations(SPLITS, 2)}
        copied = {image.image_id for pair in self.pairs if pair.crosses for image in pair[:2] if image.split == "test"}
        return {
            "images": self.images,
            "candidates": self.candidates,
            "pairs": len(self.pairs),
            "pairs_across_splits": sum(pair.crosses for pair in self.pairs),
            "pairs_of_two_patients": sum(pair.two_patients for pair in self.pairs),
            **{name: sum({pair.first.split, pair.second.split} == splits for pair in self.pairs) for name, splits in across.items()},
            "test_images_with_copies": len(copied),
        }

    def table(self) -> list[tuple[str | float, ...]]:
        """Returns the lines of duplicates.csv."""
        return [HEADER, *((*pair.first, *pair.second, int(pair.mirrored), pair.correlation, pair.cosine) for pair in self.pairs)]


HEADER = (*(f"{name}_{number}" for number in (1, 2) for name in Image._fields), "mirrored", "correlation", "cosine")


def find(shards: Shards, params: Duplicates, folder: Path, shown: int = 0, features: Features | None = None) -> Found:
    """Searches all rows of shards for near-duplicates.

    Args:
        shards: one or more folders.
        params: the section `duplicates`.
        folder: folder for THUMBNAILS.
        features: the backbone, if its features are to agree as well.
        shown: number of pairs to return the pictures of.
    """
    rows = shards.table(list(Image._fields))
    thumbnails = np.lib.format.open_memmap(folder / THUMBNAILS, "w+", np.uint8, (len(rows), fingerprints.SIDE, fingerprints.SIDE))
    for index, image in map_images(shards.row_groups(), fingerprints.thumbnail):
        thumbnails[index] = image
    candidates, mirrored = fingerprints.find_candidates(thumbnails)
    correlations = _correlations(thumbnails, candidates, mirrored)
    cosines = np.full(len(candidates), np.nan)
    best = np.lexsort((-correlations, *candidates.T))  # a symmetric picture may match itself mirrored, too
    kept = best[np.unique(candidates[best], axis=0, return_index=True)[1]]
    kept = kept[correlations[kept] >= params.min_correlation]
    if features and len(kept):
        cosines[kept] = _cosines(shards, features, candidates[kept], mirrored[kept])
        kept = kept[cosines[kept] >= params.min_cosine]

    def pair(index: int) -> Pair:
        first, second = (Image(**row) for row in rows.take(candidates[index]).to_pylist())
        place = (int(candidates[index, 0]), int(candidates[index, 1]))
        return Pair(first, second, bool(mirrored[index]), float(correlations[index]), float(cosines[index]), place)

    pairs = sorted(map(pair, kept), key=lambda found: (not found.crosses, not found.two_patients, -found.correlation, found.rows))
    pictures = [(thumbnails[a].copy(), thumbnails[b].copy()) for a, b in (found.rows for found in pairs[:shown])]
    return Found(len(rows), len(candidates), pairs, pictures)


def _keep(image: Pixels) -> Pixels:
    return image


def _turn(image: Pixels) -> Pixels:
    return image[:, ::-1]


def _correlations(thumbnails: fingerprints.Thumbnails, candidates: Integers, mirrored: Flags) -> Floats:
    def compare(index: int) -> float:
        a, b = candidates[index]
        second = thumbnails[b]
        return fingerprints.correlation(thumbnails[a], second[:, ::-1] if mirrored[index] else second)

    with ThreadPoolExecutor(threads()) as pool:
        return np.fromiter(pool.map(compare, range(len(candidates))), np.float64, len(candidates))


def _cosines(shards: Shards, features: Features, pairs: Integers, mirrored: Flags) -> Floats:
    """Returns the cosine between the features of each pair, without what the features of all images have in common."""
    rows = sum(part.rows for part in shards.parts())
    sample = range(0, rows, -(-rows // _SAMPLE))
    plain = {*sample, *pairs[~mirrored].ravel().tolist(), *pairs[mirrored, 0].tolist()}
    found: dict[tuple[int, bool], Floats] = {}
    for wanted, turned in ((plain, False), (set(pairs[mirrored, 1].tolist()), True)):
        images = map_images(shards.row_groups(), _turn if turned else _keep, wanted)
        while some := list(islice(images, _ROWS)):
            found |= {(index, turned): values for (index, _), values in zip(some, features([image for _, image in some]), strict=True)}
    centre = np.mean([found[index, False] for index in sample], axis=0)
    first = np.stack([found[index, False] for index in pairs[:, 0].tolist()]) - centre
    second = np.stack([found[index, turned] for index, turned in zip(pairs[:, 1].tolist(), mirrored.tolist(), strict=True)]) - centre
    return divide((first * second).sum(1), np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1), 0.0)
