"""The import tracer: which modules of this repository a module needs, directly or not, and which packages those import."""

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "components"


def modules(*names: str, everywhere: bool = False) -> list[Path]:
    """Lists the files of this repository that run when modules of these dotted names are imported.

    They include `__init__.py` of packages, and are relative to the root and sorted. With `everywhere`, imports within functions and
    `if TYPE_CHECKING` count.
    """
    found: set[Path] = set()
    waiting = list(names)
    while waiting:
        new = [path for path in _files(waiting.pop()) if path not in found]
        found |= set(new)
        waiting += [name for path in new for name in imported(ROOT / path, everywhere)]
    return sorted(found)


def distributions(files: list[Path]) -> list[str]:
    """Returns the names of the installed packages that files import."""
    known = _installed()
    names = {name.partition(".")[0] for path in files for name in imported(path)} - sys.stdlib_module_names - {PACKAGE}
    return sorted({_provider(name, known[name]) for name in names})


@cache
def _installed() -> Mapping[str, list[str]]:
    """Lists the installed packages by the modules that they provide, which means reading the metadata of all of them."""
    return metadata.packages_distributions()


def imported(path: Path, everywhere: bool = False) -> set[str]:
    """Returns the dotted names that a file imports at its top; with `everywhere`, also within functions and `if TYPE_CHECKING`."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _files(name: str) -> Iterator[Path]:
    """Yields the files of one of our modules and of its parent packages."""
    if name.partition(".")[0] != PACKAGE:
        return
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        below = Path(*parts[:depth])
        yield from (path for path in (below.with_suffix(".py"), below / "__init__.py") if (ROOT / path).is_file())


def _provider(name: str, candidates: list[str]) -> str:
    """Chooses among several packages that provide a module (mlflow and mlflow-skinny): the one of that name, else the first."""
    return name if name in candidates else sorted(candidates)[0]
