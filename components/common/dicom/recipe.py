"""The one recipe from the bytes of a DICOM, PNG or JPEG file to a gray image (H, W), or the reason why not.

Its steps are `open_file`, `prepare`, the function that it returns, and `render.render`; preprocess takes each of them for a group of
files at a time. `read` takes all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from components.common.dicom import dicom_file, png_jpeg
from components.common.dicom.checks import check_header, check_size
from components.common.dicom.grayscale import Decoded
from components.common.dicom.header import Header
from components.common.dicom.refusal import Refused
from components.common.dicom.render import GrayImage, render
from components.common.formats.quarantine import Reason

Image = tuple[GrayImage, int, int]  # pixels, and height and width in the file

MAX_FILE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class OpenFile:
    """A file whose header was read."""

    header: Header
    prepare_decode: Callable[[], Callable[[], Decoded]]  # reads everything that decoding needs, and returns a function that decodes


def open_file(content: bytes) -> OpenFile:
    """Reads the header; raises Refused if the file is neither DICOM, PNG nor JPEG, lacks the pixels, or is too large."""
    if len(content) > MAX_FILE_BYTES:
        raise Refused(Reason.UNREADABLE, f"a file of {len(content)} bytes")
    if png_jpeg.is_png_or_jpeg(content):
        decode, header = png_jpeg.open_file(content)
        return OpenFile(header, lambda: decode)
    elements, header = dicom_file.open_file(content)
    return OpenFile(header, lambda: dicom_file.prepare(elements, header))


def prepare(file: OpenFile, views: tuple[str, ...], view: str, body_parts: tuple[str, ...]) -> Callable[[], Decoded]:
    """Checks the header against the accepted views and body parts, and returns a function that decodes the file and checks its size.

    `view` is the canonical view of the file, from its header or from a table of the data set; empty if unknown. Both raise Refused if
    the file is not a frontal chest radiograph, or undecodable.
    """
    check_header(file.header, views, view, body_parts)
    decode = file.prepare_decode()

    def decode_and_check() -> Decoded:
        decoded = decode()
        check_size(decoded.words.shape[0], decoded.words.shape[1], file.header.pixel_aspect)
        return decoded

    return decode_and_check


def read(content: bytes, *, views: tuple[str, ...], body_parts: tuple[str, ...], size: int, bits: int, percentile: float) -> Image | str:
    """Takes all steps at once, with the parameters of `prepare` and `render.render`; returns why the file is refused if one fails.

    The result holds plain values only, so that it can be sent between processes that import this package from different places.
    """
    try:
        file = open_file(content)
        decoded = prepare(file, views, file.header.view, body_parts)()
        pixels = render(decoded, size, bits, percentile, file.header.pixel_aspect).pixels
    except Refused as refusal:
        return f"{refusal.reason.value} ({refusal.detail})"
    return pixels, file.header.height, file.header.width
