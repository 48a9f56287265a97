"""The lines that the doctor prints."""

from typing import NamedTuple

from components.common.errors import UserError
from pipelines.cluster import RefusedError

FINE, WRONG, UNKNOWN = "ok", "WRONG", "?"


class Finding(NamedTuple):
    """What a check has found."""

    what: str
    state: str  # FINE, WRONG or UNKNOWN
    said: str

    def __str__(self) -> str:
        return f"{self.state:5} {self.what}: {self.said}"


def unknown(what: str, error: UserError) -> Finding:
    """Returns the finding if the rights of the user, or the connection, do not suffice."""
    denied = isinstance(error, RefusedError) and error.status == 403
    return Finding(what, UNKNOWN, "your rights do not suffice to look" if denied else str(error))


def is_missing(error: UserError) -> bool:
    """Whether the API has answered that an object does not exist."""
    return isinstance(error, RefusedError) and error.status == 404
