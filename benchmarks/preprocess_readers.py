"""Time the reader of shards against readers of other formats, sizes of row groups, and codecs for pixels."""

import importlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import imagecodecs
import numpy as np
import pyarrow as pa
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.timing import Candidates, heading, installed, milliseconds, row, table, turns
from components.common.formats import shards
from components.common.runs import storage
from components.common.runs.shards import Shards
from components.common.training import reader

IMAGES = 400
"""Images per round of a reader."""
GROUPED_IMAGES = 1600
"""Images per round with row groups of one size."""
ROW_GROUPS = (25, 50, 100, 200, 400)
BATCH = 20


def readers(images: list[Any], scratch: Path, rounds: int) -> None:
    """Time reading the same images, shuffled where the format allows it, with one worker or thread per core."""
    images = repeated(images, IMAGES)
    workers = len(os.sched_getaffinity(0))
    candidates: Candidates = {}
    for make in (ours, png_folder, webdataset_png, mds, hugging_face):
        candidates |= make(images, scratch, workers)
    times = turns(candidates, rounds, time.perf_counter)
    table(f"reading {IMAGES} images, {workers} workers or threads, wall clock", times, IMAGES)


def row_groups(images: list[Any], scratch: Path, rounds: int) -> None:
    """Time reading shards by the number of rows in a row group."""
    images = repeated(images, GROUPED_IMAGES)
    opened = {size: packed(images, scratch / f"groups-{size}", size) for size in ROW_GROUPS}
    ways: dict[str, Callable[[reader.Reader], object]] = {
        "shuffled": lambda one: count((batch.images for batch in one.shuffled(BATCH, 0, 0)), GROUPED_IMAGES),
        "in order": lambda one: count((batch.images for batch in one.in_order(BATCH)), GROUPED_IMAGES),
    }
    candidates = {f"{size} {way}": partial(read, opened[size]) for size in ROW_GROUPS for way, read in ways.items()}
    times = turns(candidates, rounds, time.perf_counter)
    heading("rows in a row group", "images/s, shuffled", "images/s, in order")
    for size in ROW_GROUPS:
        row(str(size), *(f"{1000 / milliseconds(times[f'{size} {way}'], GROUPED_IMAGES):.0f}" for way in ways))


def codecs(images: list[Any], rounds: int) -> None:
    """Time ways to pack the pixels of a row, on one core."""
    heading("packing, one core", "ms to pack", "ms to unpack", "share of the raw bytes")
    raw = sum(image.nbytes for image in images)
    for name, (pack, unpack) in CODECS.items():
        stored = [(pack(image), image) for image in images]
        assert all(np.array_equal(unpack(content, image), image) for content, image in stored), name
        ways = {"pack": partial(all_of, pack, images), "unpack": partial(unpack_all, unpack, stored)}
        times = turns(ways, rounds)
        share = sum(len(content) for content, _ in stored) / raw
        row(name, *(f"{milliseconds(times[way], len(images)):.2f}" for way in ways), f"{share:.2f}")


def ours(images: list[Any], scratch: Path, workers: int) -> Candidates:
    """Read shards with components.common.training.reader."""
    opened = packed(images, scratch / "shards", shards.ROWS_PER_GROUP)
    return {"shards, components.common.training.reader": lambda: count(batch.images for batch in opened.shuffled(BATCH, 0, 0))}


def packed(images: list[Any], folder: Path, rows_per_group: int) -> reader.Reader:
    """Write shards of the images and open them."""
    folder.mkdir()
    blank = {"split": "train", "labels": [], "boxes": []}
    rows = ({**shards.encode(image), "image_id": f"{n}", "patient_id": f"{n}", **blank} for n, image in enumerate(images))
    path = folder / "part-00000.parquet"
    with mock.patch.object(shards, "ROWS_PER_GROUP", rows_per_group):
        shards.write_part(path, rows)
    size = max(max(image.shape) for image in images)
    part = {"name": path.name, "sha256": storage.digest_file(path), "rows": len(images)}
    manifest: Any = {"size": size, "bits": 8, "parts": [part], "findings": []}
    return reader.Reader(Shards((str(folder),), (manifest,), ("",)), "train")


def png_folder(images: list[Any], scratch: Path, workers: int) -> Candidates:
    """Read PNG files with torchvision's ImageFolder."""
    from torchvision.datasets import ImageFolder

    folder = scratch / "png" / "class"
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:06d}.png")
    dataset = ImageFolder(str(folder.parent), transform=lambda image: np.array(image.convert("L")), loader=Image.open)
    return {"PNG folder, torchvision ImageFolder": lambda: count(image for image, _ in loader(dataset, workers, shuffle=True))}


def webdataset_png(images: list[Any], scratch: Path, workers: int) -> Candidates:
    """Read tar files of PNGs with webdataset, one shard per worker."""
    if not installed("webdataset"):
        return {}
    wds = importlib.import_module("webdataset")
    for worker in range(workers):
        with wds.TarWriter(str(scratch / f"web-{worker}.tar")) as writer:
            for number, image in enumerate(images[worker::workers]):
                writer.write({"__key__": f"{number}", "png": png(image)})

    def run() -> int:
        dataset = wds.WebDataset(str(scratch / f"web-{{0..{workers - 1}}}.tar"), shardshuffle=False, empty_check=False)
        dataset = dataset.shuffle(100).map(lambda sample: unpack_png(sample["png"]))
        return count(loader(dataset, workers))

    return {"webdataset, PNG": run}


def mds(images: list[Any], scratch: Path, workers: int) -> Candidates:
    """Read mosaicml-streaming's own format, with raw arrays (its fastest) and with PNG."""
    if not installed("streaming"):
        return {}
    streaming = importlib.import_module("streaming")

    def make(kind: str, encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> Callable[[], int]:
        folder = str(scratch / f"mds-{kind}")
        with streaming.MDSWriter(out=folder, columns={"image": kind}, size_limit=2**24) as writer:
            for image in images:
                writer.write({"image": encode(image)})
        dataset = streaming.StreamingDataset(local=folder, shuffle=True, batch_size=20)
        return lambda: count(decode(sample["image"]) for sample in loader(dataset, workers))

    return {
        "mosaicml-streaming, raw": make("ndarray:uint8", lambda image: image, lambda image: image),
        "mosaicml-streaming, PNG": make("png", Image.fromarray, np.array),
    }


def hugging_face(images: list[Any], scratch: Path, workers: int) -> Candidates:
    """Read Parquet files of PNGs with Hugging Face datasets."""
    if not installed("datasets"):
        return {}
    datasets = importlib.import_module("datasets")
    features = datasets.Features({"image": datasets.Image()})
    columns = {"image": [{"bytes": png(image), "path": None} for image in images]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(scratch / "hugging-face.parquet"))
    dataset = datasets.Dataset.from_parquet(str(scratch / "hugging-face.parquet"), cache_dir=str(scratch / "cache"))
    dataset = dataset.with_transform(lambda batch: {"image": [np.asarray(image) for image in batch["image"]]})
    return {"Hugging Face datasets, PNG": lambda: count(sample["image"] for sample in loader(dataset, workers, shuffle=True))}


def loader(dataset: Any, workers: int, shuffle: bool | None = None) -> Iterator[Any]:
    """Yield one sample at a time: images differ in size, and collating belongs to no format."""
    return iter(DataLoader(dataset, batch_size=None, shuffle=shuffle, num_workers=workers))


def count(images: Iterable[Any], expected: int = IMAGES) -> int:
    """Consume the images, and make sure that none is missing."""
    total = sum(len(image) if image.ndim == 3 else 1 for image in images)
    assert total == expected, total
    return total


def repeated(images: list[Any], number: int) -> list[Any]:
    """Repeat the images up to a number."""
    return [images[n % len(images)] for n in range(number)]


def all_of(work: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Do something with every item."""
    for item in items:
        work(item)


def unpack_all(unpack: Callable[[Any, Any], object], stored: list[tuple[Any, Any]]) -> None:
    """Decode every item, given the image that it was encoded from."""
    for content, image in stored:
        unpack(content, image)


def png(image: Any) -> bytes:
    """Encode as PNG with Pillow's defaults."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def unpack_png(content: bytes) -> Any:
    """Decode PNG with Pillow."""
    return np.array(Image.open(io.BytesIO(content)))


def differences(image: Any) -> Any:
    """Subtract from each pixel the one before it, in row-major order."""
    return imagecodecs.delta_encode(image.reshape(-1))


def whole(flat: Any, image: Any) -> Any:
    """Undo `differences`, in the shape of `image`."""
    return imagecodecs.delta_decode(np.frombuffer(flat, image.dtype)).reshape(image.shape)


def by_bits(image: Any) -> Any:
    """Shuffle the bits of the differences."""
    return imagecodecs.bitshuffle_encode(differences(image))


def from_bits(planes: Any, image: Any) -> Any:
    """Undo `by_bits`."""
    return whole(imagecodecs.bitshuffle_decode(np.frombuffer(planes, image.dtype)), image)


def zstd(level: int) -> Any:
    """Return the codec at a level; -1 is without entropy coding."""
    return pa.Codec("zstd", compression_level=level)


def row_of(content: bytes, image: Any) -> dict[str, Any]:
    """Return the columns that describe a row's pixels."""
    return {"pixels": content, "codec": shards.CODEC, "bits": 8 * image.itemsize, "height": image.shape[0], "width": image.shape[1]}


CODECS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "the shards' own: differences, bitshuffle, zstd -1": (
        lambda image: shards.encode(image)["pixels"],
        lambda content, image: shards.decode(row_of(content, image)),
    ),
    "differences, bitshuffle, zstd 1": (
        lambda image: zstd(1).compress(by_bits(image), asbytes=True),
        lambda content, image: from_bits(zstd(1).decompress(content, image.nbytes), image),
    ),
    "differences, bitshuffle, LZ4": (
        lambda image: imagecodecs.lz4_encode(by_bits(image)),
        lambda content, image: from_bits(imagecodecs.lz4_decode(content, out=image.nbytes), image),
    ),
    "differences, zstd 1": (
        lambda image: zstd(1).compress(differences(image), asbytes=True),
        lambda content, image: whole(zstd(1).decompress(content, image.nbytes), image),
    ),
    "zstd 1": (
        lambda image: zstd(1).compress(image, asbytes=True),
        lambda content, image: np.frombuffer(zstd(1).decompress(content, image.nbytes), image.dtype).reshape(image.shape),
    ),
    "HTJ2K": (lambda image: imagecodecs.htj2k_encode(image, reversible=True), lambda content, image: imagecodecs.htj2k_decode(content)),
    "JPEG-LS": (imagecodecs.jpegls_encode, lambda content, image: imagecodecs.jpegls_decode(content)),
    "PNG, Pillow": (png, lambda content, image: unpack_png(content)),
}
"""Name -> functions that encode an image, and decode it given its shape and type."""
