"""The notes about all files in a database, so that memory does not grow with their number."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from components.common.formats.quarantine import Reason
from components.preprocess.index import connect, to_key, to_text
from components.preprocess.part_writer import read_notes
from components.preprocess.parts import Part
from components.preprocess.rows import Note

# Paths are blobs, since they need not be UTF-8; they sort by code point.
_SCHEMA = """
CREATE TABLE files (path BLOB PRIMARY KEY, sha256 TEXT, image TEXT, reason TEXT, detail TEXT) WITHOUT ROWID;
CREATE TABLE images (id TEXT PRIMARY KEY, path BLOB, content TEXT, files INTEGER, conflict INTEGER, split TEXT) WITHOUT ROWID;
CREATE TABLE other_images (id TEXT PRIMARY KEY);
CREATE TABLE patients (split TEXT, id TEXT, PRIMARY KEY (split, id)) WITHOUT ROWID;
"""
_KEEP_FIRST_PATH = """
INSERT INTO images VALUES (?, ?, ?, 1, 0, NULL) ON CONFLICT (id) DO UPDATE
SET path = min(path, excluded.path), files = files + 1, conflict = conflict OR content != excluded.content
"""
_SAME_PIXELS = """
SELECT IFNULL(SUM(images), 0), IFNULL(SUM(CASE WHEN splits > 1 THEN images ELSE 0 END), 0) FROM
(SELECT COUNT(*) AS images, COUNT(DISTINCT split) AS splits FROM images GROUP BY content HAVING images > 1)
"""
_REFUSE = """
UPDATE files SET reason = ?, detail = 'one of ' || (SELECT images.files FROM images WHERE id = image) || ?
WHERE reason IS NULL AND image IN (SELECT id FROM images WHERE conflict)
"""
_CONFLICT = " files with this SOPInstanceUID, which hold different images; give each its own UID, or leave only the right one"


class Ledger:
    """Which files are rows, duplicates, quarantined or left out, and which patients the rows have."""

    def __init__(self, database: sqlite3.Connection):
        self.files = 0
        self.kept = 0  # files that are neither quarantined nor left out, including duplicates
        self.skipped = 0  # files of images that were to be left out
        self.reasons: dict[str, int] = {}  # number of quarantined files by reason
        self._database = database
        self._database.executescript(_SCHEMA)

    def add(self, notes: Iterable[Note]) -> None:
        """Adds the notes of a part."""
        reasons = Counter(self.reasons)
        for note in notes:
            self.files += 1
            row = (to_key(note.path), note.sha256, note.image_id, note.reason, note.detail)
            self._database.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?)", row)
            if note.has_row:
                self.kept += 1
                self._database.execute(_KEEP_FIRST_PATH, (note.image_id, to_key(note.path), note.content))
                continue
            self._database.execute("INSERT OR IGNORE INTO other_images VALUES (?)", (note.image_id,))
            if note.reason is None:
                self.skipped += 1
            else:
                reasons[note.reason] += 1
        self._database.commit()
        self.reasons = dict(sorted(reasons.items()))

    def refuse_conflicts(self) -> None:
        """Quarantines all files whose image_id other files with other pixels have; to be called once, after all notes were added."""
        refused = self._database.execute(_REFUSE, (Reason.CONFLICTING_UID.value, _CONFLICT)).rowcount
        if refused:
            self._database.execute("INSERT OR IGNORE INTO other_images SELECT id FROM images WHERE conflict")
            self._database.execute("DELETE FROM images WHERE conflict")
            self.kept -= refused
            self.reasons[Reason.CONFLICTING_UID.value] = refused
            self.reasons = dict(sorted(self.reasons.items()))
        self._database.commit()

    def is_row(self, note: Note) -> bool:
        """Whether a file that has a row is the first one with its image, by path."""
        found = self._database.execute("SELECT path FROM images WHERE id = ?", (note.image_id,)).fetchone()
        return found is not None and found[0] == to_key(note.path)

    def is_known(self, image_id: str) -> bool:
        """Whether any file has this image, be it a row, a duplicate, quarantined or left out."""
        query = "SELECT 1 FROM images WHERE id = :id UNION ALL SELECT 1 FROM other_images WHERE id = :id"
        return self._database.execute(query, {"id": image_id}).fetchone() is not None

    def add_row(self, image_id: str | None, split: str, patient_id: str) -> None:
        """Adds what only a row tells: split and patient of its image."""
        self._database.execute("UPDATE images SET split = ? WHERE id = ?", (split, image_id))
        self._database.execute("INSERT OR IGNORE INTO patients VALUES (?, ?)", (split, patient_id))

    def same_pixels(self) -> dict[str, int]:
        """Counts the images with the pixels of another image, which has another id, and those of them that are in several splits."""
        images, across = self._database.execute(_SAME_PIXELS).fetchone()
        return {"images": images, "across_splits": across}

    def patients(self) -> dict[str, int]:
        """Returns the number of patients by split."""
        return dict(self._database.execute("SELECT split, COUNT(*) FROM patients GROUP BY split"))

    def patients_in_several_splits(self) -> int:
        """Returns the number of patients who are in more than one split."""
        return self._count("SELECT COUNT(*) FROM (SELECT id FROM patients GROUP BY id HAVING COUNT(*) > 1)")

    @property
    def duplicates(self) -> int:
        """Number of files whose image another row has."""
        return self.kept - self._count("SELECT COUNT(*) FROM images")

    @property
    def quarantined(self) -> int:
        """Number of quarantined files."""
        return sum(self.reasons.values())

    def refused(self) -> Iterator[dict[str, str]]:
        """Yields path (as UTF-8), reason and detail of quarantined files, by path."""
        for path, reason, detail in self._database.execute("SELECT path, reason, detail FROM files WHERE reason IS NOT NULL ORDER BY path"):
            printable = to_text(path).encode("utf-8", "backslashreplace").decode()
            yield {"path": printable, "reason": reason, "detail": detail or ""}

    def contents(self) -> Iterator[tuple[str, str]]:
        """Yields path and SHA-256 of every file, by path."""
        for path, sha256 in self._database.execute("SELECT path, sha256 FROM files ORDER BY path"):
            yield to_text(path), sha256

    def _count(self, query: str) -> int:
        return int(self._database.execute(query).fetchone()[0])


@contextmanager
def read_ledger(folder: Path, parts: list[Part]) -> Iterator[Ledger]:
    """Reads the notes of all parts into a database in the folder, which is open during the block."""
    path = folder / ".ledger.sqlite"
    path.unlink(missing_ok=True)
    with closing(connect(path)) as database:
        ledger = Ledger(database)
        for part in parts:
            ledger.add(read_notes(folder, part))
        yield ledger
