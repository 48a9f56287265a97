"""Index of a run: the paths of the raw files by part, what tables say by image, and the images to be left out.

It is a SQLite file, so that memory does not grow with the number of files, and every process looks up only what it needs.
"""

import hashlib
import json
import re
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from components.common.runs.local_files import Entry
from components.preprocess.parts import Partition, part_of, path_hash

V = TypeVar("V")

_CACHE_KIB = 16 * 1024
_EXTENSIONS = re.compile(r"(?<=[^/])(\.(png|jpe?g|jpe|dcm|dicom|dic|ima))+$", re.IGNORECASE)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    part INTEGER, hash BLOB, path BLOB, size INTEGER, version TEXT, fault TEXT, PRIMARY KEY (part, hash)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS maps (map TEXT, plain BLOB, key BLOB, value TEXT, PRIMARY KEY (map, plain, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS skipped (image TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class File(NamedTuple):
    """A raw file."""

    path: str
    size: int  # in bytes


def connect(path: Path | None) -> sqlite3.Connection:
    """Opens a database with a bounded cache; without a path, a private one that vanishes with the process."""
    connection = sqlite3.connect(path or "")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute("PRAGMA temp_store = FILE")
    return connection


def to_key(text: str) -> bytes:
    """Encodes text for storage: file names need not be valid UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def to_text(key: bytes) -> str:
    """The reverse of `to_key`."""
    return key.decode("utf-8", "surrogateescape")


class Index:
    """Raw files and tables of one run. Once saved, it can be pickled, and is opened again by its path."""

    def __init__(self, path: Path | None = None):
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def __getstate__(self) -> dict[str, Any]:
        assert self.path, "not saved yet"
        return {"path": self.path, "_connection": None}

    @property
    def connection(self) -> sqlite3.Connection:
        """The database, opened on first use."""
        if self._connection is None:
            self._connection = connect(self.path)
            self._connection.executescript(_SCHEMA)
        return self._connection

    def add_files(self, entries: Iterable[Entry], parts: int, partition: Partition) -> None:
        """Adds those files of a listing that belong to a partition."""
        numbered = ((part_of(entry.path, parts), entry) for entry in entries)
        rows = (
            (part, bytes.fromhex(path_hash(entry.path)), to_key(entry.path), entry.size, entry.version, entry.fault)
            for part, entry in numbered
            if partition.owns(part)
        )
        self.connection.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)

    def digest(self) -> str:
        """Returns the SHA-256 of the listing, whatever its order was."""
        total = hashlib.sha256()
        for path, *others in self.connection.execute("SELECT path, size, version, fault FROM files ORDER BY part, hash"):
            total.update(json.dumps([path.hex(), *others]).encode())
        return total.hexdigest()

    def parts(self) -> dict[int, int]:
        """Returns the number of files by part, without empty parts."""
        return dict(self.connection.execute("SELECT part, COUNT(*) FROM files GROUP BY part ORDER BY part"))

    def files(self, part: int) -> Iterator[File]:
        """Yields the files of a part that have content, in the order of processing, which reveals nothing about their names."""
        for path, size in self.connection.execute("SELECT path, size FROM files WHERE part = ? AND fault = '' ORDER BY hash", (part,)):
            yield File(to_text(path), size)

    def faults(self, part: int) -> Iterator[tuple[str, str]]:
        """Yields path and fault of what has no content, in the same order."""
        for path, fault in self.connection.execute("SELECT path, fault FROM files WHERE part = ? AND fault != '' ORDER BY hash", (part,)):
            yield to_text(path), fault

    def has_file(self, path: str, parts: int) -> bool:
        """Whether a file with this relative path was added."""
        key = part_of(path, parts), bytes.fromhex(path_hash(path))
        return self.connection.execute("SELECT 1 FROM files WHERE part = ? AND hash = ?", key).fetchone() is not None

    def skip(self, images: Iterable[str]) -> None:
        """Adds ids of images that are to be left out."""
        self.connection.executemany("INSERT OR IGNORE INTO skipped VALUES (?)", ((image,) for image in images))

    def is_skipped(self, image: str) -> bool:
        """Whether an image is to be left out."""
        return self.connection.execute("SELECT 1 FROM skipped WHERE image = ?", (image,)).fetchone() is not None

    def save(self, path: Path) -> None:
        """Moves the database to a file, atomically; an earlier one with the same content is replaced."""
        self.connection.commit()
        scratch = path.with_name(f".{path.name}")
        scratch.unlink(missing_ok=True)
        with closing(sqlite3.connect(scratch)) as target:
            self.connection.backup(target)
        self.close()
        scratch.replace(path)
        self.path = path

    def close(self) -> None:
        """Closes the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class StoredMap(MutableMapping[str, V]):
    """A dictionary in an index, from names of images to JSON-serialisable values; `restore` makes a value from decoded JSON."""

    def __init__(self, index: Index, name: str, restore: Callable[[Any], V]):
        self._index, self._name, self._restore = index, name, restore

    def match(self, name: str) -> str | None:
        """Returns the key for the name of an image: the same, else the only one that has the same `plain_name`."""
        keys = [to_text(key) for (key,) in self._execute("SELECT key FROM maps WHERE map = ? AND plain = ?", _plain_key(name))]
        return name if name in keys else keys[0] if len(keys) == 1 else None

    def __getitem__(self, key: str) -> V:
        query = "SELECT value FROM maps WHERE map = ? AND plain = ? AND key = ?"
        found = self._execute(query, _plain_key(key), to_key(key)).fetchone()
        if found is None:
            raise KeyError(key)
        return self._restore(json.loads(found[0]))

    def __setitem__(self, key: str, value: V) -> None:
        self._execute("INSERT OR REPLACE INTO maps VALUES (?, ?, ?, ?)", _plain_key(key), to_key(key), json.dumps(value))

    def __delitem__(self, key: str) -> None:
        removed = self._execute("DELETE FROM maps WHERE map = ? AND plain = ? AND key = ?", _plain_key(key), to_key(key))
        if not removed.rowcount:
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        for (key,) in self._execute("SELECT key FROM maps WHERE map = ? ORDER BY plain, key"):
            yield to_text(key)

    def __len__(self) -> int:
        return int(self._execute("SELECT COUNT(*) FROM maps WHERE map = ?").fetchone()[0])

    def _execute(self, query: str, *values: bytes | str) -> sqlite3.Cursor:
        return self._index.connection.execute(query, (self._name, *values))


def plain_name(name: str) -> str:
    """Returns the name of an image without what conversions and other systems change.

    Those are the extension, case, the form of accented letters (Unicode normalisation), and backslashes between folders.
    """
    return _EXTENSIONS.sub("", unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")).casefold()


def _plain_key(name: str) -> bytes:
    return to_key(plain_name(name))
