"""The exception that refuses a file."""

from components.common.formats.quarantine import Reason


class Refused(Exception):  # noqa: N818 - a verdict on the file, not a failure of the program
    """The file goes to quarantine; `detail` says what was found, without anything that could identify a patient."""

    def __init__(self, reason: Reason, detail: str = ""):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
