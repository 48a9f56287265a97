"""Pixel Data of a DICOM file to words, by the fastest decoder for its transfer syntax, bounded by what the header says."""

import re
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.encaps import get_frame

from components.common.dicom import jpeg_data
from components.common.dicom.checks import check_decodable_size
from components.common.dicom.elements import ITEM, Elements, integer, pixel_data
from components.common.dicom.header import Header
from components.common.dicom.refusal import Refused
from components.common.dicom.words import Word, Words, read_word, word_of_samples
from components.common.errors import UserError
from components.common.formats.quarantine import Reason

JPEG2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
RLE = uid.RLELossless
DCT = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
MAX_BYTES_PER_WORD = 2
DECODERS: dict[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(JPEG2000, partial(imagecodecs.jpeg2k_decode, numthreads=1)),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, imagecodecs.jpegls_decode),
    **dict.fromkeys(uid.JPEGTransferSyntaxes, imagecodecs.jpeg8_decode),
}
"""Transfer syntax -> decoder: OpenJPEG, CharLS and libjpeg-turbo. They are called directly since pydicom's plugins for the same
libraries are up to a fifth slower, and none for JPEG lossless is both fast and free of the GPL. OpenJPH would be faster than
OpenJPEG for HTJ2K, but imagecodecs returns its output for a damaged codestream as if it were whole."""

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}


def check_decoders() -> None:
    """Raises UserError if a decoder is missing, so that no file is refused because of that."""
    for codec in ("jpeg2k", "jpegls", "jpeg8", "dicomrle"):
        if not getattr(imagecodecs, codec.upper()).available:
            raise UserError(f"imagecodecs was built without its codec {codec}; run `make .venv`")


class Codestream(NamedTuple):
    """What the header of a codestream says."""

    height: int
    width: int
    components: int
    precision: int  # bits per sample
    signed: bool = False


def prepare_frame(elements: Elements, header: Header) -> tuple[Callable[[], Words], Word]:
    """Returns a function that decodes the single frame to words (H, W), and how numbers lie in these.

    Both raise Refused if it does not match the header, the function also whatever a decoder raises.
    """
    if integer(elements, "NumberOfFrames", 1) not in (0, 1):  # 0 is written by devices that leave the count to the length
        raise Refused(Reason.UNREADABLE, "several frames")
    if header.height < 1 or header.width < 1:
        raise Refused(Reason.UNREADABLE, "no Rows or Columns")
    word = read_word(elements)
    if not uid.UID(header.transfer_syntax).is_encapsulated:
        return partial(_decode_native, elements, header, word.width // 8), word
    frame = _codestream(pixel_data(elements))
    if header.transfer_syntax == RLE:
        return partial(_decode_rle, frame, header, word.width // 8), word
    codestream = _check_codestream(frame, header, word.width)
    return partial(_decode_codestream, frame, header), word_of_samples(word, codestream.precision, codestream.signed)


def _decode_native(elements: Elements, header: Header, size: int) -> Words:
    """Decodes words of `size` bytes."""
    data = pixel_data(elements)
    row = header.width * size
    excess = data[header.height * row :]
    # Receivers must expect padding (PS3.5 8.1.1): less than a row of anything, or any length of one value.
    if len(data) < header.height * row or (len(excess) >= row and excess[size:] != excess[:-size]):
        raise _wrong_length(len(data), header)
    check_decodable_size(header.height, header.width)
    big = header.transfer_syntax == uid.ExplicitVRBigEndian
    if big and size == 1 and elements.dataset["PixelData"].VR == "OW":  # words of two pixels each (PS3.5 8.1.1)
        data = np.frombuffer(data, np.uint8)[: len(data) // 2 * 2].reshape(-1, 2)[:, ::-1].tobytes()
    words = np.frombuffer(data, f"{'>' if big else '<'}u{size}", header.height * header.width).reshape(header.height, header.width)
    return words.astype(f"=u{size}", copy=False)


def _check_codestream(frame: bytes, header: Header, allocated: int) -> Codestream:
    """Checks the codestream against the header before it is decoded: a damaged one could make its decoder allocate any amount of memory."""
    if header.transfer_syntax not in DECODERS:
        raise Refused(Reason.UNREADABLE, f"no decoder for {uid.UID(header.transfer_syntax).name}")
    found = read_codestream(frame)
    if found is None or found[:3] != (header.height, header.width, 1):
        raise Refused(Reason.UNREADABLE, f"the codestream is not of {header.height} x {header.width} pixels")
    if found.precision > allocated:
        raise Refused(Reason.UNREADABLE, f"a codestream of {found.precision} bits in {allocated}")
    if not frame[-64:].rstrip(b"\0").endswith(b"\xff\xd9"):
        raise Refused(Reason.UNREADABLE, "truncated")  # decoders would fill in gray
    check_decodable_size(header.height, header.width)
    if header.transfer_syntax in uid.JPEGTransferSyntaxes:
        jpeg_data.check_length(frame, header.height, header.width, jpeg_data.BLOCK if header.transfer_syntax in DCT else 1)
    return found


def _decode_codestream(frame: bytes, header: Header) -> Words:
    decode = DECODERS[header.transfer_syntax]
    decoded = decode(frame)
    if header.transfer_syntax in DCT:
        jpeg_data.check_end(frame, decoded, 128 if decoded.itemsize == 1 else 2048, decode)
    if decoded.shape != (header.height, header.width) or decoded.itemsize > MAX_BYTES_PER_WORD:
        raise Refused(Reason.UNREADABLE, "the codestream holds other pixels than the header says")
    words: Words = decoded.view(f"u{decoded.itemsize}")
    return words


def _codestream(data: bytes) -> bytes:
    """Returns the single frame of encapsulated pixel data (PS3.5 A.4), without pydicom if it is a single fragment."""
    start = 8 + int.from_bytes(data[4:8], "little")
    single = data[:4] == data[start : start + 4] == ITEM and data[8:start] in (b"", bytes(4))
    if single and start + 8 + int.from_bytes(data[start + 4 : start + 8], "little") == len(data):
        return data[start + 8 :]
    frame: bytes = get_frame(data, 0, number_of_frames=1)
    return frame


def _decode_rle(frame: bytes, header: Header, size: int) -> Words:
    """Decodes words of `size` bytes."""
    length = header.height * header.width * size
    if length > 64 * len(frame):  # two bytes decode to at most 128 (PS3.5 G.3)
        raise Refused(Reason.UNREADABLE, f"too short for {header.height} x {header.width} pixels")
    check_decodable_size(header.height, header.width)
    raw = imagecodecs.dicomrle_decode(frame, dtype=f"<u{size}", out=length)
    if len(raw) != length:
        raise _wrong_length(len(raw), header)
    return np.frombuffer(raw, f"<u{size}").reshape(header.height, header.width)


def _wrong_length(length: int, header: Header) -> Refused:
    return Refused(Reason.UNREADABLE, f"{length} bytes of pixels for {header.height} x {header.width}")


def read_codestream(frame: bytes) -> Codestream | None:
    """Reads a JPEG 2000 SIZ marker (ISO 15444-1 A.5.1) or a JPEG(-LS) frame header (10918-1 B.2.2); None if there is none."""
    size = re.search(rb"\xff\x4f\xff\x51", frame[:4096])
    if size:
        width, height, left, top = struct.unpack_from(">4I", frame, size.start() + 8)
        components, depth = struct.unpack_from(">HB", frame, size.start() + 40)
        return Codestream(height - top, width - left, components, (depth & 0x7F) + 1, bool(depth >> 7))
    position = 2
    while frame[position : position + 1] == b"\xff":
        marker, length = struct.unpack_from(">BH", frame, position + 1)
        if marker in _START_OF_FRAME:
            precision, height, width, components = struct.unpack_from(">BHHB", frame, position + 4)
            return Codestream(height, width, components, precision)
        position += 2 + length
    return None
