"""The one recipe from the bytes of a DICOM, PNG or JPEG file to a gray image (H, W), or the reason why not.

`open_file`, `prepare`, the function that it returns, and `render.render` are its steps, which preprocess takes for a group of
files at a time; `read` takes all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from components.common.dicom import dicom_file, png_jpeg
from components.common.dicom.checks import check_header, check_size
from components.common.dicom.grayscale import Decoded
from components.common.dicom.header import Header
from components.common.dicom.refusal import Reason, Refused
from components.common.dicom.render import Rendered, render

MAX_FILE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class OpenFile:
    """A file whose header was read."""

    header: Header
    prepare_decode: Callable[[], Callable[[], Decoded]]
    """Reads everything that decoding needs, and returns a function that decodes."""


def open_file(content: bytes) -> OpenFile:
    """Reads the header.

    Raises:
        Refused: neither DICOM, PNG nor JPEG, truncated before the pixels, or too large for a radiograph.
    """
    if len(content) > MAX_FILE_BYTES:
        raise Refused(Reason.UNREADABLE, f"a file of {len(content)} bytes")
    if png_jpeg.is_png_or_jpeg(content):
        compressed, header = png_jpeg.open_file(content)
        return OpenFile(header, lambda: partial(png_jpeg.decode, compressed, header))
    elements, header = dicom_file.open_file(content)
    return OpenFile(header, lambda: dicom_file.prepare(elements, header))


def prepare(file: OpenFile, views: tuple[str, ...], view: str) -> Callable[[], Decoded]:
    """Checks the header, and reads everything that decoding needs.

    Args:
        file: from `open_file`.
        views: accepted View Positions.
        view: canonical view of the file, from its header or from a table of the data set; empty if unknown.

    Returns:
        A function that decodes the file to stored values (H, W) of plausible size.

    Raises:
        Refused: not a frontal chest radiograph, or undecodable; the returned function raises it, too.
    """
    check_header(file.header, views, view)
    decode = file.prepare_decode()

    def decode_and_check() -> Decoded:
        decoded = decode()
        check_size(*decoded.stored.shape)
        return decoded

    return decode_and_check


def read(content: bytes, *, views: tuple[str, ...], size: int, bits: int, percentile: float) -> tuple[Rendered, Header]:
    """Takes all steps at once.

    Args:
        content: of a file.
        views: accepted View Positions.
        size: longer side of the image, in pixels.
        bits: 8 or 16, per pixel.
        percentile: as of `render.render`.

    Returns:
        The gray image, and the header of the file.

    Raises:
        Refused: it cannot be used.
    """
    file = open_file(content)
    return render(prepare(file, views, file.header.view)(), size, bits, percentile), file.header
