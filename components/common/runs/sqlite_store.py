"""The SQLite database that holds MLflow's runs where there is no tracking server."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.engine import make_url

DATABASE = "mlflow.db"
_SCHEME = "sqlite:///"
DEFAULT_URI = f"{_SCHEME}{DATABASE}"


def address(path: Path) -> str:
    """Returns the address of a SQLite database as SQLAlchemy reads it.

    MLflow creates the parent folder of what follows `sqlite:///` without decoding it; naming the driver keeps it from that.
    """
    encoded = str(path.absolute()).replace("%", "%25").replace("?", "%3F")
    return f"{'sqlite+pysqlite' if '%' in encoded else 'sqlite'}:///{encoded}"


def absolute(uri: str) -> str:
    """Makes the path in the address of a SQLite database absolute, since MLflow caches connections by address; others are kept."""
    if not uri.startswith(_SCHEME) or uri.startswith(f"{_SCHEME}/"):
        return uri
    return f"{address(Path.cwd())}/{uri.removeprefix(_SCHEME)}"


def artifacts(uri: str, experiment: str) -> str | None:
    """Returns the artifact folder of an experiment, beside its SQLite database; None for a server, which decides for itself.

    Without it, MLflow would take the current folder.
    """
    database = _database(uri)
    return database.with_name("mlruns").joinpath(experiment).as_uri() if database else None


@contextmanager
def creating(uri: str) -> Iterator[None]:
    """Lets one process at a time connect to a SQLite database for the first time: MLflow creates and migrates its tables without a lock."""
    database = _database(uri)
    if not database:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(database.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _database(uri: str) -> Path | None:
    """Returns the absolute path of a SQLite database."""
    path = make_url(uri).database if uri.startswith("sqlite") else None
    return Path(path).absolute() if path else None
