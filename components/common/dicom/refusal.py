"""Why a file is refused: the closed list of reasons, and the exception that carries one."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a file is quarantined, in the order in which the checks are made."""

    NOT_DICOM = "not_dicom"  # neither DICOM, PNG nor JPEG
    NO_PIXELS = "no_pixels"
    WRONG_MODALITY = "wrong_modality"
    WRONG_BODY_PART = "wrong_body_part"
    WRONG_VIEW = "wrong_view"
    UNSUPPORTED_PHOTOMETRIC = "unsupported_photometric"
    BURNED_IN_TEXT = "burned_in_text"
    UNREADABLE = "unreadable"  # truncated, undecodable, or pixel data that does not fit the header
    IMPLAUSIBLE_SIZE = "implausible_size"
    BLANK_IMAGE = "blank_image"


class Refused(Exception):  # noqa: N818 - a verdict on the file, not a failure of the program
    """The file goes to quarantine; `detail` says what was found, without anything that could identify a patient."""

    def __init__(self, reason: Reason, detail: str = ""):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
