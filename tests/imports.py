"""Which of the project's modules import which, read from the source."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sources(folder: str = "components") -> dict[str, Path]:
    """Path by dotted module name."""
    return {_name(path): path for path in sorted((ROOT / folder).rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, at its top or within functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def has_code(path: Path) -> bool:
    """Whether there is more in a file than a docstring."""
    return len(ast.parse(path.read_text()).body) > 1


def reachable(module: str) -> set[str]:
    """The project's modules that run when `module` does, packages' __init__ included."""
    known = sources()
    found: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        found.add(name)
        parents = {".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)}
        waiting |= (parents | imported(known[name])) & set(known) - found
    return found


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
