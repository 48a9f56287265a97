"""PNG and JPEG files, the form of most public data sets, read like DICOM pixels with 8 or 16 bits and bright = dense tissue.

Colour (RGB, a palette, with alpha) is accepted if all channels are equal in every pixel, since such files hold a gray
radiograph. Other colours, fewer than 8 bits, CMYK and varying alpha are refused as `unsupported_photometric`. Modality, body
part and annotations are unknown and not checked; the view is checked if the tables of the data set name it. The size is checked
before decoding, and the data must be those of that many pixels, neither fewer nor far more. The path stands in for the SOPInstanceUID.
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from components.common.dicom import jpeg_data
from components.common.dicom.checks import check_size
from components.common.dicom.grayscale import Decoded, Grayscale
from components.common.dicom.header import Header
from components.common.dicom.refusal import Refused
from components.common.dicom.words import Word
from components.common.formats.quarantine import Reason

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
_PALETTE = 3
_CHANNELS = {0: 1, 2: 3, _PALETTE: 1, 4: 2, 6: 4}  # by colour type (ISO/IEC 15948, 11.2.2)
_MOST_INFLATION = 1032  # deflate writes at most 258 bytes for two bits
_TAIL = 1024
_SLACK = 2**20
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
        png = _read_png(content)
        return partial(_decode, partial(_decode_png, png), png.height, png.width), Header(png.height, png.width, "image/png")
    with _open_jpeg(content) as image:
        if image.mode not in ("L", "RGB"):
            raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, f"colour space {image.mode}")
        height, width = image.height, image.width
    return partial(_decode, partial(_decode_jpeg, content), height, width), Header(height, width, "image/jpeg")


def _decode(decoder: Callable[[], npt.NDArray[Any]], height: int, width: int) -> Decoded:
    check_size(height, width)
    decoded = decoder()
    if decoded.shape[:2] != (height, width):
        raise Refused(Reason.UNREADABLE, "other pixels than the header says")
    words = _gray(decoded)
    return Decoded(words, Grayscale(Word(bits=8 * words.itemsize)))


class _Png(NamedTuple):
    height: int
    width: int
    needed: bytes  # the file without the chunks that the pixels do not depend on
    data: bytes  # the compressed pixels
    size: int  # bytes that they should inflate to: the rows with their filter types (9.2)


def _read_png(content: bytes) -> _Png:
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
    if color not in _CHANNELS:
        raise Refused(Reason.UNREADABLE, "an unknown colour type")
    data = b"".join(chunk[8:-4] for chunk in needed if chunk[4:8] == b"IDAT")
    return _Png(height, width, b"".join(needed), data, height * (1 + (width * _CHANNELS[color] * depth + 7) // 8))


def _check_inflation(png: _Png) -> None:
    """Raises Refused if the compressed pixels are too short for the size, or inflate far beyond it.

    The decoder stops at the last row, and inflating everything here would add a third to its time. It is done only where the compressed
    data are long, or end in the repetitions of a long run.
    """
    if png.size > _MOST_INFLATION * len(png.data):
        raise Refused(Reason.UNREADABLE, f"too short for {png.height} x {png.width} pixels")
    tail = png.data[-_TAIL:]
    if len(png.data) <= png.size and 2 * len(zlib.compress(tail, 1)) >= len(tail):
        return
    stream, remaining, most = zlib.decompressobj(), png.data, 2 * png.size + _SLACK
    while remaining and most >= 0:
        most -= len(stream.decompress(remaining, _SLACK))
        remaining = stream.unconsumed_tail
    if most < 0:
        raise Refused(Reason.UNREADABLE, "inflates far beyond its pixels")


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


def _decode_png(png: _Png) -> npt.NDArray[Any]:
    """Returns (H, W) or (H, W, channels)."""
    try:
        _check_inflation(png)
        decoded = cv2.imdecode(np.frombuffer(png.needed, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, zlib.error):
        decoded = None
    if decoded is None:
        raise Refused(Reason.UNREADABLE, "not decodable as PNG")
    return np.asarray(decoded)


def _decode_jpeg(content: bytes) -> npt.NDArray[Any]:
    """Returns (H, W) or (H, W, 3)."""
    decoded = _decode_with_pillow(content)
    jpeg_data.check_end(content, decoded, 128, _decode_with_pillow)
    return decoded


def _decode_with_pillow(content: bytes) -> npt.NDArray[Any]:
    with _open_jpeg(content) as image:
        jpeg_data.check_length(content, image.height, image.width)
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
