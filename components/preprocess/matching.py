"""How the files of a raw folder and the names in its tables fit together, as far as the listing tells."""

import logging
from collections.abc import Iterable, Iterator

from components.common.errors import UserError
from components.common.runs.local_files import Entry
from components.preprocess.index import Index, StoredMap
from components.preprocess.labels import Table, is_stray

FEW = 0.01  # a smaller share of images that are named is a mistake, such as tables of another data set

log = logging.getLogger(__name__)


class Matching:
    """Counts over a listing. Every partition sees the whole of it, so all come to the same conclusions."""

    def __init__(self, table: Table, index: Index):
        self.images = 0  # images, and what has no content
        self.named = 0  # images whose path the tables name
        self.nameable = 0  # images outside of the folders that have no labels
        self.ignored = 0
        self._table = table
        self._names, self._with_boxes = len(table.records), len(table.boxes)
        self._found = found_otherwise(index)

    def select(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Yields the images of a listing, and what has no content, since nobody knows whether that would be an image."""
        for entry in entries:
            if not (self._table.is_image(entry.path) or (entry.fault and not is_stray(entry.path))):
                self.ignored += entry.path not in self._table.digests
                continue
            self.images += 1
            if not entry.fault and (self._names or self._with_boxes):
                self._count(entry.path)
            yield entry

    def _count(self, path: str) -> None:
        self.nameable += path.partition("/")[0] not in self._table.unlabelled
        names = self._table.names_of(path)
        self.named += names[0] is not None
        if self._table.complete:
            self._found.update((name, path) for name in names if name not in (None, path))

    def check(self, raw: str) -> None:
        """Says what does not fit; raises UserError without images, or if the tables name nearly none of them."""
        table, names = self._table, self._names
        if not self.images:
            raise UserError(f"{raw}: holds no files{table.place}; give the folder of the images with --raw")
        if self.ignored:
            log.info("preprocess: %d files are ignored: they are not images of the data set, or other programs left them", self.ignored)
        if table.complete or not names:
            return
        if self.named < FEW * min(names, self.nameable):
            found = f"of the {names} images in {', '.join(table.digests)}, {self.named} are among the {self.nameable} files{table.place}"
            raise UserError(f"{raw}: {found}; put tables and images of the same data set there")
        if self.named < names:
            log.warning("preprocess: the tables of the data set name %d images, of which %d exist", names, self.named)


def found_otherwise(index: Index) -> StoredMap[str]:
    """Returns the names in tables that a path matches in another spelling, with that path."""
    return StoredMap(index, "found_otherwise", str)
