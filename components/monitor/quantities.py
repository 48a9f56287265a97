"""The quantities that are compared: what they are in a table of predictions, and their distribution in a reference."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.common.formats.appearance import HEADER, LEVELS
from components.common.formats.predictions import META, scores_of
from components.common.formats.reference import Variable
from components.common.statistics.arrays import Floats, Integers

CATEGORIES = ("view", "sex", "manufacturer", "photometric")
FEWEST = 5  # images in a bin of a reference
MOST_BINS = 50
MOST_VALUES = 50  # of a category
COMPONENTS = 8
MOST_ROWS = 1000  # images whose waves and features are compared


class Cohort(NamedTuple):
    """One image per patient."""

    values: dict[str, npt.NDArray[Any]]  # by name: text with None, or numbers with NaN
    groups: dict[str, str]
    waves: Floats  # (N, W)
    features: Floats  # (N, F); F is 0 without a backbone
    backbone: str | None  # its SHA-256

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.waves)


def one_per_patient(predictions: pa.Table, appearance: pa.Table) -> Cohort:
    """Takes the image with the lowest id of each patient; the tables have the same rows."""
    table = predictions.append_column("row", pa.array(np.arange(len(predictions)))).sort_by("image_id")
    rows = np.sort(table["row"].to_numpy()[np.unique(table["patient_id"].to_numpy(), return_index=True)[1]])
    predictions, appearance = predictions.take(rows), appearance.take(rows)
    values, groups = {}, {}
    for name in (*META, *HEADER):
        column = predictions[name] if name in META else appearance[name]
        values[name] = column.to_numpy() if name in CATEGORIES else _numbers(column)
        groups[name] = "metadata"
    for name in LEVELS:
        values[name], groups[name] = _numbers(appearance[name]), "appearance"
    for name, column in scores_of(predictions).items():
        values[name], groups[name] = column, "scores"
    backbone = appearance["backbone"][0].as_py()
    waves, features = (np.array(appearance[name].to_pylist(), np.float64).reshape(len(rows), -1) for name in ("waves", "features"))
    return Cohort(values, groups, waves, features if backbone else np.empty((len(rows), 0)), backbone)


def _numbers(column: pa.ChunkedArray) -> Floats:
    numbers: Floats = column.cast(pa.float64()).to_numpy().astype(np.float64)
    return numbers


def distribution(cohort: Cohort, name: str) -> Variable:
    """Returns the distribution of a quantity in a cohort, in bins of at least FEWEST images as far as there are so many."""
    values = cohort.values[name]
    made: Variable = {"group": cohort.groups[name], "values": [], "edges": [], "counts": []}
    if name in CATEGORIES:
        found = Counter(str(value) for value in values if value is not None)
        made["values"] = [value for value, count in found.most_common(MOST_VALUES) if count >= FEWEST] or ["none"]
    else:
        known = values[~np.isnan(values)]
        bins = min(MOST_BINS, len(known) // FEWEST)
        made["edges"] = np.unique(np.quantile(known, np.arange(1, bins) / bins)).tolist() if bins > 1 else [0.0]
    made["counts"] = counts_of(cohort, name, made).tolist()
    return made


def counts_of(cohort: Cohort, name: str, variable: Variable) -> Integers:
    """Counts the images of a cohort in the bins of a variable."""
    values = cohort.values[name]
    if variable["values"]:
        places = {value: number for number, value in enumerate(variable["values"], 1)}
        bins = np.array([0 if value is None else places.get(value, len(places) + 1) for value in values], np.int64)
    else:
        bins = np.where(np.isnan(values), 0, 1 + np.searchsorted(variable["edges"], values))
    return np.bincount(bins, minlength=len(variable["values"] or variable["edges"]) + 2).astype(np.int64)


def sample_of(rows_NF: Floats, seed: int) -> list[list[float]]:
    """Returns the waves or features of at most MOST_ROWS images, in random order."""
    order = np.random.default_rng(seed).permutation(len(rows_NF))[:MOST_ROWS]
    rows: list[list[float]] = np.round(rows_NF[order], 4).tolist()
    return rows


def components(reference: Floats, batch: Floats) -> tuple[Floats, Floats]:
    """Projects the waves or features (N, F) and (M, F) to the principal components of both together, scaled to variance 1."""
    pooled = np.concatenate([reference, batch])
    pooled = pooled - pooled.mean(0)
    left, sizes, _ = np.linalg.svd(pooled, full_matrices=False)
    kept = min(COMPONENTS, int((sizes > 1e-6 * sizes[0]).sum()))
    scaled = left[:, :kept] * np.sqrt(len(pooled))
    return scaled[: len(reference)], scaled[len(reference) :]
