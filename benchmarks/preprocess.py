"""Preprocessing beside its floor and its peers, and the reader of shards beside other formats' readers.

    python -m benchmarks.preprocess [--raw DIR] [--rounds 5] [--files 120] [--size 512]

Without --raw, phantoms in the transfer syntaxes of `simulate` are made first. The floor: the fastest decoder there is for
each file (found by trying), the percentile from a histogram, a resize, and nothing else: nothing judged, nothing written.
Candidates take turns in every round, so that a drifting machine hits them alike; a ratio is taken within its round, and
the table gives the median over rounds. Preprocessing runs on one core, in seconds of its time; the readers on all, in seconds
on the wall. Peers that are not installed are
left out and named; `pip install '.[bench]'` brings them, better into an environment of their own.
"""

import argparse
import importlib
import io
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.encaps import get_frame
from torch.utils.data import DataLoader

from components.common import params as parameters
from components.common import reader, shards
from components.preprocess import dicom, part
from components.preprocess.deidentify import Pseudonyms
from components.preprocess.index import Index
from components.preprocess.labels import Table

SIZE = 512
PERCENTILE = 99.0
KEY = b"of this benchmark alone"
IMAGES_FOR_READERS = 400
Candidates = dict[str, Callable[[], object]]
Clock = Callable[[], float]


def main() -> None:
    """Prints the tables."""
    options = arguments()
    for limit in (cv2.setNumThreads, torch.set_num_threads):
        limit(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.raw) if options.raw else phantoms(Path(scratch) / "raw", options.size)
        files = usable(folder, options.files)
        end_to_end(files, Path(scratch), options.rounds)
        by_syntax(files, options.rounds)
        readers(files, Path(scratch), options.rounds)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", help="folder of DICOM files; default: phantoms")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=120, help="at most so many, evenly over the folder")
    parser.add_argument("--size", type=int, default=SIZE, help="longer side of the phantoms")
    return parser.parse_args()


def phantoms(folder: Path, size: int) -> Path:
    """A simulated cohort, in a dozen variants of transfer syntax and grayscale."""
    from components.simulate import run as simulate

    simulate.run(out=str(folder), params=parameters.Params(simulate=parameters.Simulate(patients=60, size=size)))
    return folder


def usable(folder: Path, count: int) -> list[Path]:
    """Files that become rows, evenly spread over the folder, all in the page cache."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".csv" and ours_in_memory(path) is not None:
            found.append(path)
    step = max(1, len(found) // count)
    return found[::step][:count]


def context() -> part.Context:
    """Of preprocess, without tables."""
    return part.Context("", Path(), parameters.Preprocess(size=SIZE), Pseudonyms(KEY), Table(), Index())


def ours_in_memory(path: Path) -> dict[str, Any] | None:
    """A row, or None for a refused file."""
    return part.process_file(context(), path.name, path.read_bytes())[0]


# --- raw files to shards ------------------------------------------------------------------------------------------------


def end_to_end(files: list[Path], scratch: Path, rounds: int) -> None:
    """All files once: judged, rendered, packed and written by ours; decoded, resized and left by MONAI."""
    floors = {path: floor_of(path) for path in files}
    candidates: Candidates = {
        "floor: fastest decoder, percentile, resize": lambda: [floors[path]() for path in files],
        "preprocess, end to end, Parquet": lambda: preprocess(files, scratch),
        "pydicom + Pillow, PNG": lambda: [pydicom_to_png(path, scratch) for path in files],
    }
    if installed("monai"):
        transform = monai_transform()
        candidates["MONAI LoadImage (pydicom) + Resize"] = partial(all_of, transform, files)
        candidates["MONAI LoadImage (pydicom) + Resize, PNG"] = lambda: [monai_to_png(transform, path, scratch) for path in files]
    times = turns(candidates, rounds)
    table(f"raw files to {SIZE} px, {len(files)} files, one core", times, len(files))


def by_syntax(files: list[Path], rounds: int) -> None:
    """The same two, for each transfer syntax."""
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for path in files:
        header = dicom.open_file(path.read_bytes())[1]
        groups[f"{pydicom.uid.UID(header.transfer_syntax).name[:38]}, {stored_bits(path)} bits"].append(path)
    print(f"\n{'transfer syntax':<50} {'files':>6} {'floor ms':>9} {'ours ms':>8} {'ratio':>7}  fastest decoder")
    for name, group in sorted(groups.items()):
        floors = [floor_of(path) for path in group]
        times = turns({"floor": partial(run_all, floors), "ours": partial(all_of, ours_in_memory, group)}, rounds)
        floor, ours = ([1000 * value / len(group) for value in values] for values in times.values())
        ratio = statistics.median(one / other for one, other in zip(ours, floor, strict=True))
        fastest = floors[0].args[0]
        print(f"{name:<50} {len(group):6} {statistics.median(floor):9.2f} {statistics.median(ours):8.2f} {ratio:7.3f}  {fastest}")


def stored_bits(path: Path) -> int:
    """Bits Stored."""
    return int(pydicom.dcmread(path, stop_before_pixels=True).BitsStored)


def preprocess(files: list[Path], scratch: Path) -> int:
    """Everything that the stage does for a file, written as a part."""
    shared = context()
    rows = (part.process_file(shared, str(path), path.read_bytes())[0] for path in files)
    return shards.write_part(scratch / "part.parquet", (row for row in rows if row))


def floor_of(path: Path) -> "partial[Any]":
    """The cheapest way to a resized picture, with the decoder that was fastest on this file."""
    timed = {
        name: min(elapsed(partial(decode, path), time.process_time) for _ in range(2)) for name, decode in floor_decoders(path).items()
    }
    fastest = min(timed, key=lambda name: timed[name])
    return partial(floor, fastest, floor_decoders(path)[fastest], path)


def floor_decoders(path: Path) -> dict[str, Callable[[Path], Any]]:
    """Ways to the stored values, by name."""
    syntax = dicom.open_file(path.read_bytes())[1].transfer_syntax
    decoders: dict[str, Callable[[Path], Any]] = {}
    if syntax in dicom.DECODERS:
        decoders["pydicom + imagecodecs"] = lambda path: dicom.DECODERS[syntax](frame_of(pydicom.dcmread(path)))
    elif syntax == dicom.RLE:
        decoders["pydicom + imagecodecs"] = rle
    else:
        decoders["pydicom"] = lambda path: pydicom.dcmread(path).pixel_array
    if installed("dicomsdl"):
        dicomsdl = importlib.import_module("dicomsdl")
        decoders["dicomsdl"] = lambda path: dicomsdl.open(str(path)).pixelData(storedvalue=True)
    return {name: decode for name, decode in decoders.items() if works(decode, path)}


def frame_of(dataset: pydicom.Dataset) -> bytes:
    """The only codestream."""
    frame: bytes = get_frame(dataset.PixelData, 0, number_of_frames=1)
    return frame


def rle(path: Path) -> Any:
    """RLE by imagecodecs."""
    dataset = pydicom.dcmread(path)
    dtype = f"<u{dataset.BitsAllocated // 8}"
    raw = imagecodecs.dicomrle_decode(frame_of(dataset), dtype=dtype)
    return np.frombuffer(raw, dtype).reshape(dataset.Rows, dataset.Columns)


def works(decode: Callable[[Path], Any], path: Path) -> bool:
    """Whether a decoder takes this file; which errors those that do not raise is their own affair."""
    try:
        return bool(decode(path).ndim == 2)
    except Exception as error:
        print(f"left out for {path.name}: {type(error).__name__}")
        return False


def floor(name: str, decode: Callable[[Path], Any], path: Path) -> Any:
    """Decoded, clipped at the percentile, resized."""
    stored = decode(path)
    bits = 8 * stored.itemsize
    counts = dicom.histogram(np.ascontiguousarray(stored).view(f"u{stored.itemsize}"), bits)
    upper = np.searchsorted(np.cumsum(counts), stored.size * PERCENTILE / 100)
    scaled = cv2.convertScaleAbs(stored, alpha=255 / max(int(upper), 1))
    height, width = dicom.resized_shape(*scaled.shape, SIZE)
    return scaled if scaled.shape == (height, width) else cv2.resize(scaled, (width, height), interpolation=cv2.INTER_AREA)


def monai_transform() -> Callable[[Path], Any]:
    """MONAI's own loader and resize; neither grayscale transforms nor the percentile."""
    transforms = importlib.import_module("monai.transforms")
    return transforms.Compose([
        transforms.LoadImage(reader="PydicomReader", image_only=True, ensure_channel_first=True),
        transforms.Resize(SIZE, size_mode="longest", mode="area"),
    ])  # fmt: skip


def monai_to_png(transform: Callable[[Path], Any], path: Path, scratch: Path) -> None:
    """The same, kept: scaled to 8 bits and written."""
    image = np.asarray(transform(path))[0]
    low, high = float(image.min()), float(image.max())
    Image.fromarray(((image - low) / max(high - low, 1) * 255).astype(np.uint8)).save(scratch / "monai.png")


def pydicom_to_png(path: Path, scratch: Path) -> None:
    """What most people's script does."""
    dataset = pydicom.dcmread(path)
    pixels = pydicom.pixels.apply_voi_lut(pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = pixels.max() - pixels
    upper = np.percentile(pixels, PERCENTILE)
    image = Image.fromarray((np.clip(pixels, 0, upper) / upper * 255).astype(np.uint8))
    height, width = dicom.resized_shape(*pixels.shape, SIZE)
    image.resize((width, height), Image.Resampling.BOX).save(scratch / "image.png")


def run_all(works: "list[partial[Any]]") -> None:
    """Runs them."""
    for work in works:
        work()


def all_of(transform: Callable[[Path], Any], files: list[Path]) -> None:
    """Runs it on every file."""
    for path in files:
        transform(path)


# --- readers ------------------------------------------------------------------------------------------------------------


def readers(files: list[Path], scratch: Path, rounds: int) -> None:
    """Decoded pixels of the same images, in shuffled order where the format has one, with a worker a core."""
    images = [shards.decode(row) for path in files if (row := ours_in_memory(path))]
    images = [images[i % len(images)] for i in range(IMAGES_FOR_READERS)]
    workers = len(os.sched_getaffinity(0))
    candidates: Candidates = {}
    for make in (png_folder, webdataset_png, mds, hugging_face, ours):
        found = make(images, scratch, workers)
        candidates |= found
    times = turns(candidates, rounds, time.perf_counter)
    table(f"reading {IMAGES_FOR_READERS} images of {SIZE} px, {workers} workers or threads", times, IMAGES_FOR_READERS)


def ours(images: list[Any], scratch: Path, workers: int) -> Candidates:
    """Shards through components.common.reader."""
    folder = scratch / "shards"
    folder.mkdir()
    blank = {"split": "train", "labels": [], "boxes": []}
    rows = ({**shards.encode(image), "image_id": f"{n}", "patient_id": f"{n}", **blank} for n, image in enumerate(images))
    shards.write_part(folder / "part-00000.parquet", rows)
    manifest = {"size": SIZE, "parts": [{"name": "part-00000.parquet"}], "findings": []}
    opened = reader.Reader(shards.Shards((str(folder),), (manifest,), ("",)), "train")
    return {"shards, components.common.reader": lambda: count(batch.images for batch in opened.shuffled(20, 0, 0))}


def png_folder(images: list[Any], scratch: Path, workers: int) -> Candidates:
    """ImageFolder of torchvision on PNGs."""
    from torchvision.datasets import ImageFolder

    folder = scratch / "png" / "class"
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:06d}.png")
    dataset = ImageFolder(str(folder.parent), transform=lambda image: np.array(image.convert("L")), loader=Image.open)
    return {"PNG folder, torchvision ImageFolder": lambda: count(image for image, _ in loader(dataset, workers, shuffle=True))}


def webdataset_png(images: list[Any], scratch: Path, workers: int) -> Candidates:
    """Tar files of PNGs, a shard a worker."""
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
    """mosaicml-streaming's own format, raw arrays (its fastest) and PNG."""
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
    """Hugging Face datasets on Parquet of PNGs."""
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
    """A sample at a time: images differ in size, and collating is no part of any format."""
    return iter(DataLoader(dataset, batch_size=None, shuffle=shuffle, num_workers=workers))


def count(images: Any) -> int:
    """Uses up the images; all of them must come."""
    total = sum(len(image) if image.ndim == 3 else 1 for image in images)
    assert total == IMAGES_FOR_READERS, total
    return total


def png(image: Any) -> bytes:
    """PNG by Pillow's defaults."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def unpack_png(content: bytes) -> Any:
    """PNG by Pillow."""
    return np.array(Image.open(io.BytesIO(content)))


# --- measuring ----------------------------------------------------------------------------------------------------------


def installed(name: str) -> bool:
    """Whether a peer is there; says so if not, once."""
    if name not in _installed:
        try:
            importlib.import_module(name)
            _installed[name] = True
        except ImportError as error:
            print(f"{name} is left out: {error}")
            _installed[name] = False
    return _installed[name]


_installed: dict[str, bool] = {}


def turns(candidates: Candidates, rounds: int, clock: Clock = time.process_time) -> dict[str, list[float]]:
    """Seconds of every candidate in every round, after one round to warm up: of this process's CPU, or on the wall."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            seconds = elapsed(candidate, clock)
            if number:
                times[name].append(seconds)
    return times


def elapsed(work: Callable[[], object], clock: Clock) -> float:
    """Seconds of one call."""
    started = clock()
    work()
    return clock() - started


def table(title: str, times: dict[str, list[float]], images: int) -> None:
    """Milliseconds and images a second, and the ratio of times to the first."""
    first = next(iter(times.values()))
    print(f"\n{title:<66} {'ms':>8} {'images/s':>9} {'ratio':>7}")
    for name, values in times.items():
        ratio = statistics.median(value / reference for value, reference in zip(values, first, strict=True))
        seconds = statistics.median(values) / images
        print(f"{name:<66} {1000 * seconds:8.2f} {1 / seconds:9.0f} {ratio:7.3f}")


if __name__ == "__main__":
    main()
