"""Time preprocessing against a lower bound and other libraries, and the reader of shards against readers of other formats.

    python -m benchmarks.preprocess [--raw DIR] [--rounds 3] [--files 120] [--only files syntaxes codecs readers groups processes]

Without --raw, phantoms in the transfer syntaxes of `simulate` are made first. The floor (lower bound) decodes each file with the
fastest decoder found by trial, takes the percentile from a histogram and resizes; it checks nothing and writes nothing. MONAI: its
LoadImage with its PydicomReader, which decodes with pydicom's default decoder, and its Resize by area.

Candidates take turns in every round, so that a change in the machine's speed affects them alike; a ratio is taken within a round, and
the tables show medians over the rounds. Files and codecs are timed in seconds of this process's CPU, readers and processes by the wall
clock. Libraries that are not installed are left out with a message; `make .venv-bench` installs them.
"""

import argparse
import importlib
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import cache, partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.encaps import get_frame
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from benchmarks.preprocess_processes import processes
from benchmarks.preprocess_readers import all_of, codecs, readers, row_groups
from benchmarks.timing import Candidates, elapsed, heading, installed, milliseconds, ratios, row, table, turns
from components.common.dicom import decoders, dicom_file
from components.common.dicom.render import histogram, resized_shape
from components.common.formats import shards
from components.params import Params
from components.preprocess import rows
from components.preprocess.deidentify import ENVIRONMENT_VARIABLE, Pseudonyms
from components.preprocess.index import Index
from components.preprocess.labels import Table
from components.preprocess.params import Preprocess
from components.simulate.params import Simulate

SIZE = 512
PERCENTILE = 99.0
KEY = "a key for this benchmark only"
TABLES = ("files", "syntaxes", "codecs", "readers", "groups", "processes")


def main() -> None:
    """Print the tables."""
    options = arguments()
    for limit in (cv2.setNumThreads, torch.set_num_threads):
        limit(1)
    os.environ[ENVIRONMENT_VARIABLE] = KEY
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        raw = Path(options.raw) if options.raw else phantoms(scratch / "raw", options.size)
        found = usable(raw)
        files = found[:: max(1, len(found) // options.files)][: options.files]
        images = [shards.decode(made) for path in files if (made := ours_in_memory(path))]
        work: dict[str, Callable[[], object]] = {
            "files": lambda: end_to_end(files, scratch, options.rounds),
            "syntaxes": lambda: by_syntax(files, options.rounds),
            "codecs": lambda: codecs(images, options.rounds),
            "readers": lambda: readers(images, scratch, options.rounds),
            "groups": lambda: row_groups(images, scratch, options.rounds),
            "processes": lambda: processes(found, scratch, SIZE, partial(floor_in_processes, files)),
        }
        for name in options.only:
            work[name]()


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", help="folder of DICOM files (default: phantoms)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=120, help="at most so many, evenly spaced in the sorted folder")
    parser.add_argument("--size", type=int, default=SIZE, help="longer side of the phantoms in pixels")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, help="tables to print")
    return parser.parse_args()


def phantoms(folder: Path, size: int) -> Path:
    """Simulate a cohort in a dozen variants of transfer syntax and grayscale."""
    from components.simulate import run as simulate

    simulate.run(out=str(folder), **Params(simulate=Simulate(patients=60, size=size)).arguments("simulate"))
    return folder


def usable(folder: Path) -> list[Path]:
    """Return the files that preprocess accepts, sorted by path."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".csv")
    return [path for path in found if ours_in_memory(path) is not None]


def context() -> rows.Context:
    """Return the context of preprocess without label tables."""
    return rows.Context("", Path(), Preprocess(size=SIZE), Pseudonyms(KEY.encode()), Table(), Index())


def ours_in_memory(path: Path) -> dict[str, Any] | None:
    """Preprocess a file to a row, or to None if it is refused."""
    return rows.process_file(context(), path.name, path.read_bytes()).row


def end_to_end(files: list[Path], scratch: Path, rounds: int) -> None:
    """Time all files: preprocess checks, renders, packs and writes; MONAI decodes and resizes."""
    for path in files:
        decoder_of(path)
    candidates: Candidates = {
        "floor: fastest decoder, percentile, resize": lambda: [floor(path) for path in files],
        "of which the decoder": lambda: [decoder_of(path)[1](path) for path in files],
        "preprocess, end to end, Parquet": lambda: preprocess(files, scratch),
        "pydicom + Pillow, PNG": partial(all_of, lambda path: pydicom_to_png(path, scratch), files),
    }
    if installed("monai"):
        candidates["MONAI LoadImage (pydicom) + Resize, nothing kept"] = lambda: [monai()(path) for path in files]
        candidates["MONAI LoadImage (pydicom) + Resize, PNG"] = partial(all_of, lambda path: monai_to_png(path, scratch), files)
    table(f"raw files to {SIZE} px, {len(files)} files, one core", turns(candidates, rounds), len(files))


def by_syntax(files: list[Path], rounds: int) -> None:
    """Time the files of each transfer syntax, without writing."""
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for path in files:
        header = dicom_file.open_file(path.read_bytes())[1]
        groups[f"{pydicom.uid.UID(header.transfer_syntax).name[:38]}, {stored_bits(path)} bits"].append(path)
    columns = ("files", "decoder ms", "floor ms", "preprocess ms", "MONAI ms", "preprocess / floor", "preprocess / MONAI", "fastest")
    heading("transfer syntax", *columns)
    for name, group in sorted(groups.items()):
        row(name, str(len(group)), *syntax_cells(group, rounds), decoder_of(group[0])[0])


def syntax_cells(files: list[Path], rounds: int) -> list[str]:
    """Return the numbers in a row of `by_syntax`."""
    candidates: Candidates = {
        "decoder": lambda: [decoder_of(path)[1](path) for path in files],
        "floor": lambda: [floor(path) for path in files],
        "ours": lambda: [ours_in_memory(path) for path in files],
    }
    if installed("monai"):
        candidates["MONAI"] = lambda: [monai()(path) for path in files]
    times = turns(candidates, rounds)
    each = [f"{milliseconds(times[name], len(files)):.2f}" if name in times else "" for name in ("decoder", "floor", "ours", "MONAI")]
    return each + [f"{statistics.median(ratios(times['ours'], times[name])):.2f}" if name in times else "" for name in ("floor", "MONAI")]


def stored_bits(path: Path) -> int:
    """Return Bits Stored."""
    return int(pydicom.dcmread(path, stop_before_pixels=True).BitsStored)


def preprocess(files: list[Path], scratch: Path) -> int:
    """Do all that the stage does with a file, and write a part."""
    shared = context()
    processed = rows.process_files(shared, ((str(path), path.read_bytes()) for path in files))
    return shards.write_part(scratch / "part.parquet", (each.row for each in processed if each.row))


@cache
def decoder_of(path: Path) -> tuple[str, Callable[[Path], Any]]:
    """Return the name of the decoder that is fastest on this file, and the decoder."""
    timed = {name: min(elapsed(partial(decode, path)) for _ in range(3)) for name, decode in floor_decoders(path).items()}
    fastest = min(timed, key=lambda name: timed[name])
    return fastest, floor_decoders(path)[fastest]


def floor_decoders(path: Path) -> dict[str, Callable[[Path], Any]]:
    """Return the decoders that accept a file, by name; each returns stored values."""
    syntax = dicom_file.open_file(path.read_bytes())[1].transfer_syntax
    found: dict[str, Callable[[Path], Any]] = {}
    if syntax in decoders.DECODERS:
        found["pydicom + imagecodecs"] = lambda path: decoders.DECODERS[syntax](frame_of(pydicom.dcmread(path)))
    elif syntax == decoders.RLE:
        found["pydicom + imagecodecs"] = rle
    else:
        found["pydicom"] = lambda path: pydicom.dcmread(path).pixel_array
    if installed("dicomsdl"):
        dicomsdl = importlib.import_module("dicomsdl")
        found["dicomsdl"] = lambda path: dicomsdl.open(str(path)).pixelData(storedvalue=True)
    return {name: decode for name, decode in found.items() if works(decode, path)}


def frame_of(dataset: pydicom.Dataset) -> bytes:
    """Return the codestream of the only frame."""
    return bytes(get_frame(dataset.PixelData, 0, number_of_frames=1))


def rle(path: Path) -> Any:
    """Decode RLE with imagecodecs."""
    dataset = pydicom.dcmread(path)
    dtype = f"<u{dataset.BitsAllocated // 8}"
    raw = imagecodecs.dicomrle_decode(frame_of(dataset), dtype=dtype)
    return np.frombuffer(raw, dtype).reshape(dataset.Rows, dataset.Columns)


def works(decode: Callable[[Path], Any], path: Path) -> bool:
    """Return whether a decoder accepts a file; decoders raise all kinds of errors."""
    try:
        return bool(decode(path).ndim == 2)
    except Exception:
        return False


def floor(path: Path) -> Any:
    """Decode, clip at the percentile and resize."""
    stored = decoder_of(path)[1](path)
    bits = 8 * stored.itemsize
    counts = histogram(np.ascontiguousarray(stored).view(f"u{stored.itemsize}"), bits)
    upper = np.searchsorted(np.cumsum(counts), stored.size * PERCENTILE / 100)
    scaled = cv2.convertScaleAbs(stored, alpha=255 / max(int(upper), 1))
    height, width = resized_shape(scaled.shape[0], scaled.shape[1], SIZE)
    return scaled if scaled.shape == (height, width) else cv2.resize(scaled, (width, height), interpolation=cv2.INTER_AREA)


def floor_in_processes(files: list[Path], workers: int) -> float:
    """Return the seconds in which each of several processes does the floor for all files, to see how far the machine scales."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers + 1, timeout=600)  # a process may die
    children = [context.Process(target=floor_at_once, args=(files, barrier)) for _ in range(workers)]
    for child in children:
        child.start()
    barrier.wait()
    seconds = elapsed(barrier.wait, time.perf_counter)
    for child in children:
        child.join()
    return seconds


def floor_at_once(files: list[Path], barrier: Barrier) -> None:
    """Choose the decoders, then do the floor between two barriers."""
    cv2.setNumThreads(1)
    for path in files:
        decoder_of(path)
    barrier.wait()
    for path in files:
        floor(path)
    barrier.wait()


@cache
def monai() -> Callable[[Path], Any]:
    """Return MONAI's loader and resize, without grayscale transforms and percentile."""
    transforms = importlib.import_module("monai.transforms")
    composed: Callable[[Path], Any] = transforms.Compose([
        transforms.LoadImage(reader="PydicomReader", image_only=True, ensure_channel_first=True),
        transforms.Resize(SIZE, size_mode="longest", mode="area"),
    ])  # fmt: skip
    return composed


def monai_to_png(path: Path, scratch: Path) -> None:
    """Load and resize with MONAI, scale to 8 bits and write a PNG."""
    image = np.asarray(monai()(path))[0]
    low, high = float(image.min()), float(image.max())
    Image.fromarray(((image - low) / max(high - low, 1) * 255).astype(np.uint8)).save(scratch / "monai.png")


def pydicom_to_png(path: Path, scratch: Path) -> None:
    """Convert a file with pydicom and Pillow, as scripts commonly do."""
    dataset = pydicom.dcmread(path)
    pixels = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = pixels.max() - pixels
    upper = np.percentile(pixels, PERCENTILE)
    image = Image.fromarray((np.clip(pixels, 0, upper) / upper * 255).astype(np.uint8))
    height, width = resized_shape(pixels.shape[0], pixels.shape[1], SIZE)
    image.resize((width, height), Image.Resampling.BOX).save(scratch / "image.png")


if __name__ == "__main__":
    main()
