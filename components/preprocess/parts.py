"""Which part of the shards a file belongs to, and which partition of the work a part."""

import hashlib
from typing import NamedTuple

from components.common.errors import UserError


class Part(NamedTuple):
    """Files that go into one Parquet file."""

    number: int
    files: int
    """How many."""

    @property
    def name(self) -> str:
        """File name of the part."""
        return f"part-{self.number:05d}.parquet"

    @property
    def notes_name(self) -> str:
        """File name of its notes."""
        return f"part-{self.number:05d}.jsonl"

    @property
    def attempts_name(self) -> str:
        """File name of the record of attempts, while it is unfinished."""
        return f"part-{self.number:05d}.attempts"


class Partition(NamedTuple):
    """One of `total` disjoint slices of the parts: those whose number leaves the remainder `number`."""

    number: int = 0
    total: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def owns(self, part: int) -> bool:
        """Whether a part belongs to this slice."""
        return part % self.total == self.number


def part_of(path: str, parts: int) -> int:
    """Index of the part that the file with this relative path belongs to, out of `parts`."""
    return int(path_hash(path)[:16], 16) % parts


def path_hash(path: str) -> str:
    """SHA-256 of a relative path, in hex; files are processed in its order, which tells nothing about their names."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()


def parse_partition(text: str) -> Partition:
    """Reads i/n, with i from 0 to n - 1.

    Raises:
        UserError: it is something else.
    """
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and int(number) < int(total)):
        raise UserError(f"--partition {text}: must read I/N with I from 0 to N - 1, such as 0/4 and 3/4 for the first and last of four")
    return Partition(int(number), int(total))
