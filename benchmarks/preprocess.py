"""Preprocessing beside its floor and its peers, and the reader of shards beside other formats' readers.

    python -m benchmarks.preprocess [--raw DIR] [--rounds 3] [--files 120] [--only files syntaxes codecs readers groups processes]

Without --raw, phantoms in the transfer syntaxes of `simulate` are made first. The floor: the fastest decoder there is for
each file (found by trying), the percentile from a histogram, a resize, and nothing else: nothing judged, nothing written.
MONAI: its LoadImage with its PydicomReader, which decodes with pydicom's own choice of decoder, and its Resize by area.

Candidates take turns in every round, so that a drifting machine hits them alike; a ratio is taken within its round, and
the tables give medians over rounds. Files and codecs: in seconds of this process's CPU time; readers and processes: on the wall.
Peers that are not installed are left out and named; `pip install '.[bench]'` brings them, better into an environment of their own.
"""

import argparse
import importlib
import logging
import multiprocessing
import os
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

from benchmarks.preprocess_processes import processes
from benchmarks.preprocess_readers import codecs, readers, row_groups
from benchmarks.preprocess_timing import Candidates, elapsed, heading, installed, milliseconds, ratio, row, table, turns
from components import params as parameters
from components.common.dicom import dicom_file
from components.common.dicom.render import histogram, resized_shape
from components.common.formats import shards
from components.preprocess import rows
from components.preprocess.deidentify import ENVIRONMENT_VARIABLE, Pseudonyms
from components.preprocess.index import Index
from components.preprocess.labels import Table

SIZE = 512
PERCENTILE = 99.0
KEY = "the key of this benchmark alone"
TABLES = ("files", "syntaxes", "codecs", "readers", "groups", "processes")


def main() -> None:
    """Prints the tables."""
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
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", help="folder of DICOM files; default: phantoms")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=120, help="at most so many, evenly over the folder")
    parser.add_argument("--size", type=int, default=SIZE, help="longer side of the phantoms")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, help="these tables")
    return parser.parse_args()


def phantoms(folder: Path, size: int) -> Path:
    """A simulated cohort, in a dozen variants of transfer syntax and grayscale."""
    from components.simulate import run as simulate

    simulate.run(out=str(folder), **parameters.Params(simulate=parameters.Simulate(patients=60, size=size)).arguments("simulate"))
    return folder


def usable(folder: Path) -> list[Path]:
    """Files that become rows, by path."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".csv")
    return [path for path in found if ours_in_memory(path) is not None]


def context() -> rows.Context:
    """Of preprocess, without tables."""
    return rows.Context("", Path(), parameters.Preprocess(size=SIZE), Pseudonyms(KEY.encode()), Table(), Index())


def ours_in_memory(path: Path) -> dict[str, Any] | None:
    """A row, or None for a refused file."""
    return rows.process_file(context(), path.name, path.read_bytes()).row


def end_to_end(files: list[Path], scratch: Path, rounds: int) -> None:
    """All files once: judged, rendered, packed and written by ours; decoded, resized and left by MONAI."""
    for path in files:
        decoder_of(path)
    candidates: Candidates = {
        "floor: fastest decoder, percentile, resize": lambda: [floor(path) for path in files],
        "of which the decoder": lambda: [decoder_of(path)[1](path) for path in files],
        "preprocess, end to end, Parquet": lambda: preprocess(files, scratch),
        "pydicom + Pillow, PNG": lambda: [pydicom_to_png(path, scratch) for path in files],
    }
    if installed("monai"):
        candidates["MONAI LoadImage (pydicom) + Resize, nothing kept"] = lambda: [monai()(path) for path in files]
        candidates["MONAI LoadImage (pydicom) + Resize, PNG"] = lambda: [monai_to_png(path, scratch) for path in files]
    table(f"raw files to {SIZE} px, {len(files)} files, one core", turns(candidates, rounds), len(files))


def by_syntax(files: list[Path], rounds: int) -> None:
    """The same for each transfer syntax, with nothing written by anyone."""
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for path in files:
        header = dicom_file.open_file(path.read_bytes())[1]
        groups[f"{pydicom.uid.UID(header.transfer_syntax).name[:38]}, {stored_bits(path)} bits"].append(path)
    columns = ("files", "decoder ms", "floor ms", "preprocess ms", "MONAI ms", "preprocess / floor", "preprocess / MONAI", "fastest")
    heading("transfer syntax", *columns)
    for name, group in sorted(groups.items()):
        row(name, str(len(group)), *syntax_cells(group, rounds), decoder_of(group[0])[0])


def syntax_cells(files: list[Path], rounds: int) -> list[str]:
    """The numbers of a row of `by_syntax`."""
    candidates: Candidates = {
        "decoder": lambda: [decoder_of(path)[1](path) for path in files],
        "floor": lambda: [floor(path) for path in files],
        "ours": lambda: [ours_in_memory(path) for path in files],
    }
    if installed("monai"):
        candidates["MONAI"] = lambda: [monai()(path) for path in files]
    times = turns(candidates, rounds)
    each = [f"{milliseconds(times[name], len(files)):.2f}" if name in times else "" for name in ("decoder", "floor", "ours", "MONAI")]
    return each + [f"{ratio(times['ours'], times[name]):.2f}" if name in times else "" for name in ("floor", "MONAI")]


def stored_bits(path: Path) -> int:
    """Bits Stored."""
    return int(pydicom.dcmread(path, stop_before_pixels=True).BitsStored)


def preprocess(files: list[Path], scratch: Path) -> int:
    """Everything that the stage does for a file, written as a part."""
    shared = context()
    processed = rows.process_files(shared, ((str(path), path.read_bytes()) for path in files))
    return shards.write_part(scratch / "part.parquet", (each.row for each in processed if each.row))


@cache
def decoder_of(path: Path) -> tuple[str, Callable[[Path], Any]]:
    """The decoder that was fastest on this file, with its name."""
    timed = {name: min(elapsed(partial(decode, path)) for _ in range(3)) for name, decode in floor_decoders(path).items()}
    fastest = min(timed, key=lambda name: timed[name])
    return fastest, floor_decoders(path)[fastest]


def floor_decoders(path: Path) -> dict[str, Callable[[Path], Any]]:
    """Ways to the stored values, by name."""
    syntax = dicom_file.open_file(path.read_bytes())[1].transfer_syntax
    decoders: dict[str, Callable[[Path], Any]] = {}
    if syntax in decoders.DECODERS:
        decoders["pydicom + imagecodecs"] = lambda path: decoders.DECODERS[syntax](frame_of(pydicom.dcmread(path)))
    elif syntax == decoders.RLE:
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
    """Whether a decoder takes this file; with which errors it does not is its own affair."""
    try:
        return bool(decode(path).ndim == 2)
    except Exception:
        return False


def floor(path: Path) -> Any:
    """Decoded, clipped at the percentile, resized."""
    stored = decoder_of(path)[1](path)
    bits = 8 * stored.itemsize
    counts = histogram(np.ascontiguousarray(stored).view(f"u{stored.itemsize}"), bits)
    upper = np.searchsorted(np.cumsum(counts), stored.size * PERCENTILE / 100)
    scaled = cv2.convertScaleAbs(stored, alpha=255 / max(int(upper), 1))
    height, width = resized_shape(*scaled.shape, SIZE)
    return scaled if scaled.shape == (height, width) else cv2.resize(scaled, (width, height), interpolation=cv2.INTER_AREA)


def floor_in_processes(files: list[Path], workers: int) -> float:
    """Seconds until each of so many processes has done the floor for all files: how far the machine itself scales."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers + 1, timeout=600)  # a process that dies must not be waited for
    children = [context.Process(target=floor_at_once, args=(files, barrier)) for _ in range(workers)]
    for child in children:
        child.start()
    barrier.wait()
    seconds = elapsed(barrier.wait, time.perf_counter)
    for child in children:
        child.join()
    return seconds


def floor_at_once(files: list[Path], barrier: Barrier) -> None:
    """Does the floor between two meetings at the barrier, the decoders chosen before."""
    cv2.setNumThreads(1)
    for path in files:
        decoder_of(path)
    barrier.wait()
    for path in files:
        floor(path)
    barrier.wait()


@cache
def monai() -> Callable[[Path], Any]:
    """MONAI's own loader and resize; neither grayscale transforms nor the percentile."""
    transforms = importlib.import_module("monai.transforms")
    return transforms.Compose([
        transforms.LoadImage(reader="PydicomReader", image_only=True, ensure_channel_first=True),
        transforms.Resize(SIZE, size_mode="longest", mode="area"),
    ])  # fmt: skip


def monai_to_png(path: Path, scratch: Path) -> None:
    """The same, kept: scaled to 8 bits and written."""
    image = np.asarray(monai()(path))[0]
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
    height, width = resized_shape(*pixels.shape, SIZE)
    image.resize((width, height), Image.Resampling.BOX).save(scratch / "image.png")


if __name__ == "__main__":
    main()
