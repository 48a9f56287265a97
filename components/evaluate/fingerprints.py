"""Finds images that may be copies of each other among many, by a perceptual hash, and tells copies from similar images.

The hash of an image says for each of 256 waves of a small copy (the coefficients of a two-dimensional DCT) whether it is stronger than
in half of the cohort, so that what all chests have in common does not count. Two images become a candidate if they agree in all bits of
one of several random subsets (locality-sensitive hashing: Gionis et al., VLDB 1999) and in most bits altogether. Nobody compares all pairs:
the work grows with the number of images, not with its square. Every image is also looked up mirrored and without its margins.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from components.common.formats.shards import Pixels
from components.common.statistics.arrays import Integers

SIDE = 128  # of a thumbnail, in pixels
MAX_DISTANCE = 64  # most bits of 256 in which candidates differ; other patients differ in about 128, hardly ever in fewer than 70
_COARSE = 64  # side of the copies that are aligned
_WAVES = 16  # waves per axis
_LOW = 9  # waves per axis that subsets are drawn from, since a small shift changes finer ones
_TABLES = 32  # subsets
_BITS = 512  # more than the bits of a hash
_FEW = 100_000  # candidates that any cohort may have; a larger one has about as many as images, those with the smallest distances
_MOST = 32  # images with the same bits of a subset that one image is compared with
_SAMPLE = 20_000  # images that the medians are taken over
_CHUNK = 1024  # images or pairs that are worked on at a time
_WINDOWS = (
    ((0.0, 1.0), (0.0, 1.0)),
    *(((cut, 1 - cut), (cut, 1 - cut)) for cut in (0.025, 0.05)),
    *(((0.05, 1.0), (0.0, 1.0)), ((0.0, 0.95), (0.0, 1.0)), ((0.0, 1.0), (0.05, 1.0)), ((0.0, 1.0), (0.0, 0.95))),
)
"""Parts of the height and of the width that remain of an image when it is looked up."""
_DETAIL = (1.0, 3.0)  # standard deviations of the Gaussian filters whose difference keeps the fine structure of a thumbnail, in pixels
_FORM = (0.7, 4.0)  # those that keep what two coarse copies are aligned by
_STARTS = (1.0, 0.93, 1 / 0.93)  # scales at which alignment starts
_MAX_STRETCH, _MAX_SHIFT = 0.15, 10.0  # an alignment beyond these (the shift in coarse pixels) is none
_ITERATIONS = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
_ENOUGH = 0.9  # correlation at which no other alignment is tried

Thumbnails = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
Window = tuple[tuple[float, float], tuple[float, float]]


def thumbnail(pixels: Pixels) -> Thumbnails:
    """Returns a (SIDE, SIDE) copy with an equalised histogram, which other windows and brightness hardly change."""
    small = cv2.resize(pixels.astype(np.float32) * (255 / np.iinfo(pixels.dtype).max), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.equalizeHist(np.rint(small).astype(np.uint8)), np.uint8)


def find_candidates(thumbnails: Thumbnails, seed: int = 0) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Returns pairs of images that may be copies, (P, 2) with the smaller index first, and whether one of each is mirrored, (P,).

    `thumbnails` is (N, SIDE, SIDE) and may be mapped from a file.
    """
    count = len(thumbnails)
    if count < 2:
        return np.empty((0, 2), np.int64), np.empty(0, bool)
    medians = np.median(_waves(thumbnails[:: -(-count // _SAMPLE)], _WINDOWS[0]), axis=0)
    base = _bits(thumbnails, medians, _WINDOWS[0], False)
    subsets = _subsets(count, seed)
    tables = [_sorted_keys(base, subset) for subset in subsets]
    packed = _packed(base)
    most = max(count, _FEW)
    found, limit = np.empty(0, np.int64), MAX_DISTANCE  # (first * count + second, mirrored, distance) as one number each
    for window, mirrored in product(_WINDOWS, (False, True)):
        queries = base if (window, mirrored) == (_WINDOWS[0], False) else _bits(thumbnails, medians, window, mirrored)
        words = _packed(queries)
        for subset, (keys, order) in zip(subsets, tables, strict=True):
            new = [found]
            for query, match in _matches(keys, order, _keys(queries, subset)):
                distance = np.bitwise_count(words[query] ^ packed[match]).sum(1, dtype=np.int64)
                near = (query != match) & (distance <= limit)
                first, second = np.sort([query[near], match[near]], axis=0)
                new.append(((first * count + second) * 2 + mirrored) * _BITS + distance[near])
            found = np.sort(np.concatenate(new))
            found = found[np.unique(found // _BITS, return_index=True)[1]]  # of each pair the smallest distance
            if len(found) > 2 * most:
                limit = int(np.partition(found % _BITS, most)[most]) - 1
                found = found[found % _BITS <= limit]
    pairs = found // _BITS
    return np.stack(np.divmod(pairs // 2, count), axis=1), pairs % 2 == 1


def correlation(first: Thumbnails, second: Thumbnails) -> float:
    """Correlates the fine structure of two thumbnails once the second is aligned to the first by an affine map.

    Copies reach 0.8 to 1, images of two patients 0 to 0.6. The alignment maximises the enhanced correlation coefficient
    (Evangelidis and Psarakis, IEEE TPAMI 2008).
    """
    a, b = first.astype(np.float32), second.astype(np.float32)
    map_23 = _alignment(_coarse(a), _coarse(b))
    size, flags = (SIDE, SIDE), cv2.WARP_INVERSE_MAP
    aligned = cv2.warpAffine(b, map_23, size, flags=flags | cv2.INTER_LINEAR)
    covered = cv2.warpAffine(np.ones_like(b), map_23, size, flags=flags | cv2.INTER_NEAREST)
    inside = cv2.erode(covered, np.ones((13, 13), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    return _normalised(_band(a, *_DETAIL)[inside], _band(aligned, *_DETAIL)[inside])


def _alignment(a: Array, b: Array) -> Array:
    """Returns the map (2, 3) from pixels of the first thumbnail to those of the second that fits best; the identity if none does."""
    best: float = _normalised(a, b)
    chosen: Array = np.eye(2, 3, dtype=np.float32)
    for scale in _STARTS:
        margin = (_COARSE - 1) / 2 * (1 - scale)
        start = np.array([[scale, 0, margin], [0, scale, margin]], np.float32)
        try:
            value, found = cv2.findTransformECC(a, b, start, cv2.MOTION_AFFINE, _ITERATIONS, np.ones_like(a, np.uint8), 3)
        except cv2.error:  # does not converge, as with a blank image
            continue
        plausible = np.abs(found[:, :2] - np.eye(2)).max() <= _MAX_STRETCH and np.abs(found[:, 2]).max() <= _MAX_SHIFT
        if plausible and value > best:
            best, chosen = value, found
        if best > _ENOUGH:
            break
    ratio = SIDE / _COARSE  # centres of pixels lie at halves
    chosen[:, 2] = ratio * chosen[:, 2] + (ratio - 1) / 2 * (1 - chosen[:, :2].sum(1))
    return chosen


def _coarse(image: Array) -> Array:
    return _band(cv2.resize(image, (_COARSE, _COARSE), interpolation=cv2.INTER_AREA), *_FORM)


def _band(image: Array, fine: float, wide: float) -> Array:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), fine) - cv2.GaussianBlur(image, (0, 0), wide))


def _normalised(a: Array, b: Array) -> float:
    """Returns the correlation coefficient; 0 if one image is blank."""
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / norm if norm else 0.0


def _waves(thumbnails: Thumbnails, window: Window) -> Array:
    """Returns DCT coefficients (n, 16, 16) of parts of thumbnails, each image's of length 1 and without its mean."""
    down, across = (_dct_of_part(*part) for part in window)
    chunks = []
    for start in range(0, len(thumbnails), _CHUNK):
        values = np.asarray(thumbnails[start : start + _CHUNK], np.float32) - 127.5
        waves = down @ values @ across.T
        waves[:, 0, 0] = 0
        norms = np.linalg.norm(waves, axis=(1, 2), keepdims=True)
        chunks.append(waves / np.maximum(norms, 1e-12))
    return np.concatenate(chunks)


def _dct_of_part(start: float, stop: float) -> Array:
    """Returns the matrix (16, SIDE) that stretches a part of a line of pixels to its full length and takes the DCT-II of it."""
    centres = (np.arange(SIDE) + 0.5) / SIDE
    places = np.clip((start + (stop - start) * centres) * SIDE - 0.5, 0, SIDE - 1)
    left = np.minimum(places.astype(int), SIDE - 2)
    stretch = np.zeros((SIDE, SIDE))
    rows = np.arange(SIDE)
    stretch[rows, left], stretch[rows, left + 1] = 1 - (places - left), places - left
    return (np.cos(np.pi * np.arange(_WAVES)[:, None] * centres) @ stretch).astype(np.float32)


def _bits(thumbnails: Thumbnails, medians: Array, window: Window, mirrored: bool) -> npt.NDArray[np.bool_]:
    """Returns the hashes (N, 16, 16) of parts of thumbnails; mirroring changes the sign of every second wave across."""
    signs = np.where(np.arange(_WAVES) % 2, -1 if mirrored else 1, 1).astype(np.float32)
    parts = (_waves(thumbnails[start : start + _CHUNK], window) for start in range(0, len(thumbnails), _CHUNK))
    return np.concatenate([waves * signs > medians for waves in parts])


def _packed(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    return np.packbits(bits.reshape(len(bits), -1), axis=1).view(np.uint64)


def _subsets(count: int, seed: int) -> list[Integers]:
    """Returns the subsets: so many bits that two unlike images rarely agree in all of them."""
    low = np.array([_WAVES * y + x for y in range(_LOW) for x in range(_LOW)][1:])
    size = min(len(low), max(8, math.ceil(math.log2(count))))
    generator = np.random.default_rng(seed)
    return [generator.choice(low, size, replace=False) for _ in range(_TABLES)]


def _keys(bits: npt.NDArray[np.bool_], subset: Integers) -> Integers:
    keys: Integers = bits.reshape(len(bits), -1)[:, subset] @ (1 << np.arange(len(subset)))
    return keys


def _sorted_keys(bits: npt.NDArray[np.bool_], subset: Integers) -> tuple[Integers, Integers]:
    keys = _keys(bits, subset)
    order = np.argsort(keys, kind="stable")
    return keys[order], order


def _matches(keys: Integers, order: Integers, wanted: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Yields indices of queries and of images with the same key, at most _MOST per query."""
    begin, end = (np.searchsorted(keys, wanted, side) for side in ("left", "right"))
    lengths = np.minimum(end - begin, _MOST)
    for start in range(0, len(wanted), _CHUNK * 64):
        chosen = slice(start, start + _CHUNK * 64)
        counts = lengths[chosen]
        query = np.repeat(np.arange(start, start + len(counts)), counts)
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        yield query, order[np.repeat(begin[chosen], counts) + offsets]
