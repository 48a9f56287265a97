"""What a file needs to run: this repository's modules that it imports, directly or not, and the packages that those import."""

import ast
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "components"


def modules(*names: str) -> list[Path]:
    """Files of this repository that run when modules of these names are imported, packages' __init__ included; relative to the root."""
    found: set[Path] = set()
    waiting = list(names)
    while waiting:
        new = [path for path in _files(waiting.pop()) if path not in found]
        found |= set(new)
        waiting += [name for path in new for name in imported(ROOT / path)]
    return sorted(found)


def distributions(files: list[Path]) -> list[str]:
    """Names of the installed packages that files import."""
    known = metadata.packages_distributions()
    names = {name.partition(".")[0] for path in files for name in imported(path)} - sys.stdlib_module_names - {PACKAGE}
    return sorted({_provider(name, known[name]) for name in names})


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports as it begins to run; not within functions or `if TYPE_CHECKING`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _files(name: str) -> Iterator[Path]:
    """The files of a module of ours and of the packages around it, if there is such a module."""
    if name.partition(".")[0] != PACKAGE:
        return
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        below = Path(*parts[:depth])
        yield from (path for path in (below.with_suffix(".py"), below / "__init__.py") if (ROOT / path).is_file())


def _provider(name: str, candidates: list[str]) -> str:
    """Of several packages that bring a module (mlflow and mlflow-skinny), the one of that name, else the first."""
    return name if name in candidates else sorted(candidates)[0]
