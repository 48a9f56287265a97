"""Data sets as they lie on disk after the download, chosen by `preprocess.layout`.

One module a layout. Each fills a `labels.Table` from the set's own files, so that nothing behind it knows where a label
comes from. Rules that hold for all public sets:

- Every class or finding of the set becomes a label column under its own name, No Finding and Normal among them.
- An image that the set's files do not name has unknown labels. Named images need not be there: many people have a part.
- Files outside the set's image folders (readmes, tables, what archive tools left) are not looked at.
"""

from collections.abc import Callable

from components.common.errors import UserError
from components.preprocess import labels
from components.preprocess.index import Index
from components.preprocess.labels import Table
from components.preprocess.layouts import chexpert, folders, nih, rsna, vindr
from components.preprocess.params import Preprocess


def _read_table(raw: str, params: Preprocess, index: Index | None) -> Table:
    if params.split == "official":
        raise UserError("preprocess.split: the layout `table` has no official split; set it to hash")
    return labels.read(raw, params.unknown_labels, index)


LAYOUTS: dict[str, Callable[[str, Preprocess, Index | None], Table]] = {
    "table": _read_table,
    "nih": nih.read,
    "rsna": rsna.read,
    "vindr": vindr.read,
    "chexpert": chexpert.read,
    "folders": folders.read,
}


def read(raw: str, params: Preprocess, index: Index | None = None) -> Table:
    """Reads what the raw folder's own files say of its images.

    Args:
        raw: the raw folder.
        params: `layout` and the parameters that layouts have.
        index: holds the rows on disk, so that memory does not grow with their number.

    Raises:
        UserError: a file of the layout is missing, or has a mistake, which is named with its line.
    """
    return LAYOUTS[params.layout](raw, params, index)
