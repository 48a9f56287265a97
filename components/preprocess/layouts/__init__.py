"""Layouts of data sets on disk: `preprocess.layout` names one of the modules of this package, so a new layout is one file here.

A layout has a function `read(raw, params, index)`, which reads the tables of the data set into a `labels.Table`, so that no other
code knows where a label comes from. Rules for all public data sets:

- Every class or finding becomes a label column under its own name, including No Finding and Normal.
- An image that the tables do not name has unknown labels. Named images need not exist: many people have only a part.
- Files outside the image folders (readmes, tables, leftovers of archive tools) are ignored.
"""

from importlib import import_module

from components.preprocess.index import Index
from components.preprocess.labels import Table
from components.preprocess.params import Preprocess


def read(raw: str, params: Preprocess, index: Index | None = None) -> Table:
    """Reads what the tables of a raw folder say about its images; raises UserError, with the line, if one has a mistake or is missing.

    An index holds the rows on disk, so that memory does not grow with their number.
    """
    table: Table = import_module(f"{__name__}.{params.layout}").read(raw, params, index)
    return table
