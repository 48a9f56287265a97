"""PNG and JPEG files, the form of most public data sets, read like DICOM pixels with 8 or 16 bits and bright = dense tissue.

Colour (RGB, a palette, with alpha) is accepted if all channels are equal in every pixel, since such files hold a gray
radiograph. Other colours, fewer than 8 bits, CMYK and varying alpha are refused as `unsupported_photometric`. Modality, body
part and annotations are unknown and not checked; the view is checked if the tables of the data set name it. The size is checked
before decoding. The path stands in for the SOPInstanceUID.
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from components.common.dicom.checks import check_size
from components.common.dicom.grayscale import Decoded, Grayscale
from components.common.dicom.header import Header
from components.common.dicom.refusal import Refused
from components.common.formats.quarantine import Reason

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
_PALETTE = 3
_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""Chunks that the pixels depend on (ISO/IEC 15948, 11.2 and 11.3.2); others are not passed to the decoder."""


def is_png_or_jpeg(content: bytes) -> bool:
    """Whether a file starts like PNG or JPEG, and is not DICOM with such a preamble."""
    return content.startswith((PNG, JPEG)) and content[128:132] != b"DICM"


def open_file(content: bytes) -> tuple[Callable[[], Decoded], Header]:
    """Reads the size, and checks that a PNG file is complete; returns a function that decodes to uint8 or uint16, and the header.

    Raises Refused if it is truncated, damaged, of fewer than 8 bits, or CMYK; the function if the size is implausible, or the pixels are
    undecodable or not gray.
    """
    if content.startswith(PNG):
        needed, (height, width) = _read_png(content)
        return partial(_decode, _decode_png, needed, height, width), Header(height, width, "image/png")
    with _open_jpeg(content) as image:
        if image.mode not in ("L", "RGB"):
            raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, f"colour space {image.mode}")
        height, width = image.height, image.width
    return partial(_decode, _decode_jpeg, content, height, width), Header(height, width, "image/jpeg")


def _decode(decoder: Callable[[bytes], npt.NDArray[Any]], content: bytes, height: int, width: int) -> Decoded:
    check_size(height, width)
    decoded = decoder(content)
    if decoded.shape[:2] != (height, width):
        raise Refused(Reason.UNREADABLE, "other pixels than the header says")
    stored = _gray(decoded)
    return Decoded(stored, Grayscale(bits=8 * stored.itemsize))


def _read_png(content: bytes) -> tuple[bytes, tuple[int, int]]:
    """Returns the file without the chunks that are not needed, its height and width."""
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
        raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, f"{depth} bits per pixel")
    return b"".join(needed), (height, width)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields type and bytes of each chunk up to IEND (ISO/IEC 15948, 5.3) after checking it: libpng would fill in what is missing."""
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
    """Returns (H, W) or (H, W, channels)."""
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise Refused(Reason.UNREADABLE, "not decodable as PNG")
    return np.asarray(decoded)


def _decode_jpeg(content: bytes) -> npt.NDArray[Any]:
    """Returns (H, W) or (H, W, 3)."""
    with _open_jpeg(content) as image:
        return np.asarray(image)


@contextmanager
def _open_jpeg(content: bytes) -> Iterator[Image.Image]:
    """Opens a file with Pillow, which detects truncation, where OpenCV fills in gray. It decodes on first use of the pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the size, which is checked here
            with Image.open(BytesIO(content), formats=("JPEG",)) as image:
                yield image
    except Image.DecompressionBombError:
        raise Refused(Reason.IMPLAUSIBLE_SIZE, "not decoded") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error):
        raise Refused(Reason.UNREADABLE, "not decodable as JPEG") from None


def _gray(decoded: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns (H, W) if all colour channels are equal."""
    if decoded.ndim == 2:
        return decoded
    colours = decoded[..., :3]
    if decoded.shape[2] == 4 and np.ptp(decoded[..., 3]):
        raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, "alpha varies")
    if any((colours[..., 0] != colours[..., other]).any() for other in (1, 2)):
        raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, "colours")
    return np.ascontiguousarray(colours[..., 0])
