"""Index of a run: the paths of the raw files by part, and what tables say by image.

It is a SQLite file, so that memory does not grow with the number of files, and every process looks up only what it needs.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from components.common.runs import storage
from components.preprocess.parts import Partition, part_of, path_hash

V = TypeVar("V")

_CACHE_KIB = 16 * 1024
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (part INTEGER, hash BLOB, path BLOB, size INTEGER, version TEXT, PRIMARY KEY (part, hash)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS maps (map TEXT, key BLOB, value TEXT, PRIMARY KEY (map, key)) WITHOUT ROWID;
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

    def add_files(self, entries: Iterable[storage.Entry], parts: int, partition: Partition) -> int:
        """Adds those files of a listing that belong to a partition, and returns the number of all files of the listing."""
        total = 0

        def rows() -> Iterator[tuple[int, bytes, bytes, int, str]]:
            nonlocal total
            for entry in entries:
                total += 1
                part = part_of(entry.path, parts)
                if partition.owns(part):
                    yield part, bytes.fromhex(path_hash(entry.path)), to_key(entry.path), entry.size, entry.version

        self.connection.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?)", rows())
        return total

    def digest(self) -> str:
        """Returns the SHA-256 of the listing, whatever its order was."""
        total = hashlib.sha256()
        for path, size, version in self.connection.execute("SELECT path, size, version FROM files ORDER BY part, hash"):
            total.update(json.dumps([path.hex(), size, version]).encode())
        return total.hexdigest()

    def parts(self) -> dict[int, int]:
        """Returns the number of files by part, without empty parts."""
        return dict(self.connection.execute("SELECT part, COUNT(*) FROM files GROUP BY part ORDER BY part"))

    def files(self, part: int) -> Iterator[File]:
        """Yields the files of a part in the order of processing, which reveals nothing about their names."""
        for path, size in self.connection.execute("SELECT path, size FROM files WHERE part = ? ORDER BY hash", (part,)):
            yield File(to_text(path), size)

    def has_file(self, path: str, parts: int) -> bool:
        """Whether a file with this relative path was added."""
        key = part_of(path, parts), bytes.fromhex(path_hash(path))
        return self.connection.execute("SELECT 1 FROM files WHERE part = ? AND hash = ?", key).fetchone() is not None

    def save(self, path: Path) -> None:
        """Moves the database to a file, atomically; an earlier one with the same content is replaced."""
        self.connection.commit()
        scratch = path.with_name(f".{path.name}")
        scratch.unlink(missing_ok=True)
        with sqlite3.connect(scratch) as target:
            self.connection.backup(target)
        target.close()
        self.close()
        scratch.replace(path)
        self.path = path

    def close(self) -> None:
        """Closes the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class StoredMap(MutableMapping[str, V]):
    """A dictionary in an index, from text to JSON-serialisable values, sorted by key; `restore` makes a value from decoded JSON."""

    def __init__(self, index: Index, name: str, restore: Callable[[Any], V]):
        self._index, self._name, self._restore = index, name, restore

    def __getitem__(self, key: str) -> V:
        query = "SELECT value FROM maps WHERE map = ? AND key = ?"
        found = self._index.connection.execute(query, (self._name, to_key(key))).fetchone()
        if found is None:
            raise KeyError(key)
        return self._restore(json.loads(found[0]))

    def __setitem__(self, key: str, value: V) -> None:
        row = (self._name, to_key(key), json.dumps(value))
        self._index.connection.execute("INSERT OR REPLACE INTO maps VALUES (?, ?, ?)", row)

    def __delitem__(self, key: str) -> None:
        removed = self._index.connection.execute("DELETE FROM maps WHERE map = ? AND key = ?", (self._name, to_key(key)))
        if not removed.rowcount:
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        for (key,) in self._index.connection.execute("SELECT key FROM maps WHERE map = ? ORDER BY key", (self._name,)):
            yield to_text(key)

    def __len__(self) -> int:
        return int(self._index.connection.execute("SELECT COUNT(*) FROM maps WHERE map = ?", (self._name,)).fetchone()[0])
