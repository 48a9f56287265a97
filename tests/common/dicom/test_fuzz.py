"""Every damaged file becomes a row or is quarantined, quickly and in bounded memory."""

import faulthandler
import json
import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.common.formats import shards
from components.common.formats.quarantine import Reason
from components.preprocess.deidentify import Pseudonyms
from components.preprocess.index import Index
from components.preprocess.labels import Table
from components.preprocess.params import Preprocess
from components.preprocess.rows import Context, process_files
from tests.common.dicom.mutations import bombs, mutated, whole_files

MAX_RESIDENT_BYTES = 2 * 2**30
SECONDS_A_FILE = 60


def process(files: Iterable[bytes], folder: Path) -> Counter[str]:
    """Counts the files by quarantine reason, "" for rows; writes the rows and reads them again."""
    context = Context("", folder, Preprocess(size=64), Pseudonyms(b"a key of sixteen"), Table(), Index())
    ends: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for row, note in process_files(context, ((str(number), content) for number, content in enumerate(files))):
            assert (row is None) == (note.reason is not None)
            ends["" if note.reason is None else Reason(note.reason).value] += 1
            if row:
                yield row

    count = shards.write_part(folder / "part.parquet", rows())
    stored = pq.read_table(folder / "part.parquet").to_pylist() if count else []
    assert len(stored) == count == ends[""]
    for row in stored:
        assert max(shards.decode(row).shape) == 64
    return ends


def test_details_are_sentences(tmp_path: Path) -> None:
    context = Context("", tmp_path, Preprocess(size=64), Pseudonyms(b"a key of sixteen"), Table(), Index())
    files = whole_files()
    contents = [mutated(files, number) for number in range(200)]
    details = {note.detail for _, note in process_files(context, [("", content) for content in contents]) if note.detail}
    assert len(details) > 5 and not [detail for detail in details if re.search(r"Error|Exception|Panic", detail)]


def test_intact_files_become_rows(tmp_path: Path) -> None:
    files = whole_files()
    assert process(files, tmp_path) == {"": len(files)}


def test_mutated_files_end_as_a_row_or_in_quarantine(tmp_path: Path) -> None:
    files = whole_files()
    ends = process((mutated(files, number) for number in range(400)), tmp_path)
    assert ends.total() == 400
    assert min(ends[""], ends["unreadable"], ends["not_dicom"]) > 5, "the mutations are too weak or too strong to show anything"


@pytest.mark.slow
def test_ten_thousand_mutated_files_in_bounded_memory() -> None:
    counts = run_in_subprocess("mutated", 10_000)
    assert counts["files"] == 10_000
    assert counts["peak"] < MAX_RESIDENT_BYTES


@pytest.mark.slow
def test_bombs_are_refused_in_bounded_memory() -> None:
    counts = run_in_subprocess("bombs", 0)
    assert counts["rows"] == 0
    assert counts["peak"] < MAX_RESIDENT_BYTES


def run_in_subprocess(what: str, count: int) -> dict[str, int]:
    """Runs `main` in a subprocess, so that a crash or a hang fails the test instead of ending pytest."""
    command = [sys.executable, "-m", "tests.common.dicom.test_fuzz", what, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_A_FILE + count, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


def main(what: str, count: int, folder: Path) -> None:
    """Prints the number of files and rows and the peak resident memory in bytes; exits if a file takes SECONDS_A_FILE."""
    whole = whole_files()
    files = bombs().values() if what == "bombs" else (mutated(whole, number) for number in range(count))

    def watched() -> Iterator[bytes]:
        for content in files:
            faulthandler.dump_traceback_later(SECONDS_A_FILE, exit=True)
            yield content

    ends = process(watched(), folder)
    faulthandler.cancel_dump_traceback_later()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(json.dumps({"files": ends.total(), "rows": ends[""], "peak": peak}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1], int(sys.argv[2]), Path(scratch))
