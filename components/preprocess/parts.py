"""Parts and partitions: which part of the shards a file belongs to, and which partition of the work a part."""

import hashlib
from typing import NamedTuple

from components.common.errors import UserError
from components.common.formats.shards import part_name


class Part(NamedTuple):
    """The files that go into one Parquet file."""

    number: int
    files: int  # how many there are

    @property
    def name(self) -> str:
        """File name of the part."""
        return part_name(self.number)

    @property
    def notes_name(self) -> str:
        """File name of its notes."""
        return f"part-{self.number:05d}.jsonl"

    @property
    def attempts_name(self) -> str:
        """File name of the record of attempts, while it is unfinished."""
        return f"part-{self.number:05d}.attempts"


class Partition(NamedTuple):
    """One of `total` disjoint sets of parts: those whose number modulo `total` is `number`."""

    number: int = 0
    total: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def owns(self, part: int) -> bool:
        """Whether a part belongs to this partition."""
        return part % self.total == self.number


def parse_partition(text: str) -> Partition:
    """Parses I/N with I from 0 to N - 1; raises UserError for any other text."""
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and int(number) < int(total)):
        raise UserError(f"--partition {text}: must be I/N with I from 0 to N - 1; for four partitions, give 0/4 to 3/4")
    return Partition(int(number), int(total))


def part_of(path: str, parts: int) -> int:
    """Returns the number of the part, out of `parts`, that the file with this relative path belongs to."""
    return int(path_hash(path)[:16], 16) % parts


def path_hash(path: str) -> str:
    """Returns the SHA-256 of a relative path; files are processed in its order, which reveals nothing about their names."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()
