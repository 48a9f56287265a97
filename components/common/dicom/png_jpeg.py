"""PNG and JPEG files, as most public sets ship them, taken the same way as DICOM pixels.

Gray of 8 or 16 bits is taken as it is, bright = dense. Colour (RGB, a palette, with alpha) is taken if all channels agree in
every pixel: such files hold a gray radiograph; others are refused as `unsupported_photometric`, as are fewer than 8 bits,
CMYK, and alpha that varies. What a picture cannot say, its modality, body part, view or annotations, is not judged, but the
view where the data set's tables name one. Sizes are judged before anything is decoded. A picture's id is its path.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from components.common.dicom import checks
from components.common.dicom.dicom_file import MAX_FILE_BYTES
from components.common.dicom.grayscale import Grayscale
from components.common.dicom.header import PHOTOMETRICS, Header
from components.common.dicom.refusal import Reason, Refused

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
_PALETTE = 3
_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""What the pixels depend on (PNG, ISO/IEC 15948, 11.2 and 11.3.2). The decoder gets no other: they may hold anything."""


@dataclass(frozen=True)
class Picture:
    """A PNG file of checked chunks, or a JPEG file."""

    content: bytes
    is_png: bool


def is_picture(content: bytes) -> bool:
    """Whether a file begins as PNG or JPEG, and is not DICOM with such a preamble."""
    return content.startswith((PNG, JPEG)) and content[128:132] != b"DICM"


def open_file(content: bytes) -> tuple[Picture, Header]:
    """Reads the size, and checks that a PNG is whole.

    Returns:
        The picture, and a header like that of a DICOM file which says nothing but its size.

    Raises:
        Refused: truncated or damaged, fewer than 8 bits, or CMYK.
    """
    if len(content) > MAX_FILE_BYTES:
        raise Refused(Reason.UNREADABLE, f"a file of {len(content)} bytes")
    if content.startswith(PNG):
        needed, (height, width) = _read_png(content)
        return Picture(needed, True), _header("image/png", height, width)
    height, width = _read_jpeg(content)
    return Picture(content, False), _header("image/jpeg", height, width)


def decode(picture: Picture, header: Header) -> tuple[npt.NDArray[Any], Grayscale]:
    """Decodes a picture of plausible size.

    Returns:
        Stored values (H, W), uint8 or uint16, and what they mean.

    Raises:
        Refused: of an implausible size, undecodable, or not gray.
    """
    checks.check_size(header.height, header.width)
    decoded = _decode_png(picture.content) if picture.is_png else _decode_jpeg(picture.content)
    if decoded.shape[:2] != (header.height, header.width):
        raise Refused(Reason.UNREADABLE, "other pixels than the header says")
    stored = _gray(decoded)
    bits = 8 * stored.itemsize
    return stored, Grayscale(
        bits=bits, signed=False, slope=1.0, intercept=0.0, modality=None, voi=None, inverse=False, padding=None
    )  # fmt: skip


def _header(kind: str, height: int, width: int) -> Header:
    return Header(
        sop_instance_uid="", sop_class="", modality="", body_part="", view="", photometric=PHOTOMETRICS[1], burned_in="",
        transfer_syntax=kind, patient_id="", study_instance_uid="", sex="", age="", birth_date="", study_date="", manufacturer="",
        synthetic=False, has_pixels=True, samples=1, height=height, width=width,
    )  # fmt: skip


def _read_png(content: bytes) -> tuple[bytes, tuple[int, int]]:
    """The file without the chunks that are not needed, its height and width."""
    needed, kinds = [PNG], []
    for kind, chunk in _chunks(content):
        if kind in _CHUNKS:
            kinds.append(kind)
            needed.append(chunk)
    if kinds[:1] != [b"IHDR"] or kinds[-1] != b"IEND" or len(needed[1]) != 25:
        raise Refused(Reason.UNREADABLE, "truncated")
    width, height, depth, color = struct.unpack_from(">IIBB", needed[1], 8)
    if not height or not width:
        raise Refused(Reason.UNREADABLE, "no pixels")
    if depth < 8 and color != _PALETTE:
        raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, f"{depth} bits a pixel")
    return b"".join(needed), (height, width)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and whole of each chunk up to IEND (ISO/IEC 15948, 5.3), checked: libpng would fill in what is missing."""
    position = len(PNG)
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content):
            break
        if zlib.crc32(content[position + 4 : end - 4]) != struct.unpack_from(">I", content, end - 4)[0]:
            raise Refused(Reason.UNREADABLE, "a chunk's checksum is wrong")
        yield kind, content[position:end]
        if kind == b"IEND":
            return
        position = end
    raise Refused(Reason.UNREADABLE, "truncated")


def _decode_png(content: bytes) -> npt.NDArray[Any]:
    """(H, W) or (H, W, channels)."""
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise Refused(Reason.UNREADABLE, "not decodable as PNG")
    return np.asarray(decoded)


def _read_jpeg(content: bytes) -> tuple[int, int]:
    """Height and width of a JPEG file of a colour space that can be gray."""
    with _jpeg(content) as image:
        if image.mode not in ("L", "RGB"):
            raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, f"colour space {image.mode}")
        return image.height, image.width


def _decode_jpeg(content: bytes) -> npt.NDArray[Any]:
    """(H, W) or (H, W, 3)."""
    with _jpeg(content) as image:
        return np.asarray(image)


@contextmanager
def _jpeg(content: bytes) -> Iterator[Image.Image]:
    """By Pillow, which tells a truncated file, where OpenCV fills in gray. It decodes on first use of the pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are judged here
            with Image.open(BytesIO(content), formats=("JPEG",)) as image:
                yield image
    except Image.DecompressionBombError:
        raise Refused(Reason.IMPLAUSIBLE_SIZE, "not decoded") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error) as error:
        raise Refused(Reason.UNREADABLE, type(error).__name__) from None


def _gray(decoded: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(H, W) of a picture whose colour channels agree."""
    if decoded.ndim == 2:
        return decoded
    colours = decoded[..., :3]
    if decoded.shape[2] == 4 and np.ptp(decoded[..., 3]):
        raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, "alpha varies")
    if any((colours[..., 0] != colours[..., other]).any() for other in (1, 2)):
        raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, "colours")
    return np.ascontiguousarray(colours[..., 0])
