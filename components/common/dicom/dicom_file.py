"""A DICOM file's bytes to its header and stored values; whatever a parser or decoder stumbles over makes the file unreadable."""

import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO

from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from components.common.dicom.checks import MAX_PIXELS
from components.common.dicom.decoders import Stored, prepare_frame
from components.common.dicom.elements import Elements, read_plain
from components.common.dicom.grayscale import Grayscale, read_grayscale
from components.common.dicom.header import Header, read_header
from components.common.dicom.refusal import Reason, Refused

# Its log quotes header values, too.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

MAX_FILE_BYTES = 512 * 2**20
MAX_INFLATED_BYTES = 2 * MAX_PIXELS + 2**24
_FIRST_TAGS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_FILE_META = 2
_TRANSFER_SYNTAX = 0x10
_LONG_VRS = (b"OB", b"UN")
"""Of file meta: lengths take four bytes, after two that are reserved."""
_PIXEL_DATA_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")


def open_file(content: bytes) -> tuple[Elements, Header]:
    """Parses a file.

    Raises:
        Refused: not DICOM, truncated before the pixels, or too large to be a radiograph.
    """
    if len(content) > MAX_FILE_BYTES:
        raise Refused(Reason.UNREADABLE, f"a file of {len(content)} bytes")
    preamble = content[128:132] == b"DICM"
    if not preamble and content[:2] not in _FIRST_TAGS:
        raise Refused(Reason.NOT_DICOM, "no DICM prefix" if content else "an empty file")
    with _refusing(Reason.UNREADABLE if preamble else Reason.NOT_DICOM):
        elements, transfer_syntax = _parse(content)
        header = read_header(elements, transfer_syntax)
    if not preamble and not header.sop_class and not header.height:
        raise Refused(Reason.NOT_DICOM, "no DICM prefix and no image attributes")
    if not header.has_pixels and any(tag in content for tag in _PIXEL_DATA_TAGS):
        raise Refused(Reason.UNREADABLE, "truncated")
    return elements, header


def prepare(elements: Elements, header: Header) -> Callable[[], tuple[Stored, Grayscale]]:
    """Reads how to decode the one frame and how to show it.

    Returns:
        What decodes it: to stored values (H, W), and what they mean.

    Raises:
        Refused: undecodable, or pixel data that does not fit the header; when it is decoded, too.
    """

    def decode() -> tuple[Stored, Grayscale]:
        with _refusing(Reason.UNREADABLE):
            return decode_frame(), grayscale

    with _refusing(Reason.UNREADABLE):
        grayscale = read_grayscale(elements, header)
        decode_frame = prepare_frame(elements, header, grayscale)
    return decode


def decode(elements: Elements, header: Header) -> tuple[Stored, Grayscale]:
    """Prepares and decodes at once."""
    return prepare(elements, header)()


@contextmanager
def _refusing(reason: Reason) -> Iterator[None]:
    """The one place where any exception counts as a verdict on the file: parsers and decoders raise anything.

    Their warnings are dropped: they quote header values, which may identify a patient, and checks.py judges those.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (Refused, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the RLE decoder is written in Rust, whose panics are no Exception
        raise Refused(reason, type(error).__name__) from None


def _parse(content: bytes) -> tuple[Elements, str]:
    """The data set and its transfer syntax. Pydicom takes as long for file meta as for the data set, so plain ones are read here."""
    meta = _read_file_meta(content)
    if meta is None:
        if DeflatedExplicitVRLittleEndian.encode() in content[:1024]:
            raise Refused(Reason.UNREADABLE, "deflated, after odd file meta")  # pydicom inflates without bounds
        dataset = dcmread(BytesIO(content), force=True)
        return Elements.of(dataset), str(dataset.file_meta.get("TransferSyntaxUID") or "") or _found_syntax(*dataset.original_encoding)
    transfer_syntax, start = meta
    deflated = transfer_syntax == DeflatedExplicitVRLittleEndian
    body, start = (_inflate(content[start:]), 0) if deflated else (content, start)
    implicit, little = transfer_syntax == ImplicitVRLittleEndian, transfer_syntax != ExplicitVRBigEndian

    def parse() -> Dataset:
        stream = BytesIO(body)
        stream.seek(start)
        return read_dataset(stream, implicit, little)

    plain = read_plain(body, start, implicit) if little else None
    return Elements(plain, parse) if plain is not None else Elements.of(parse()), transfer_syntax


def _read_file_meta(content: bytes) -> tuple[str, int] | None:
    """Transfer syntax and end of the file meta (PS3.10 7.1); None where it is missing or not written as the standard has it."""
    if content[128:140] != b"DICM\x02\0\0\0UL\x04\0":
        return None
    position, end = 144, 144 + int(struct.unpack_from("<I", content, 140)[0])
    transfer_syntax = ""
    while position < end:
        group, element, vr, length = struct.unpack_from("<HH2sH", content, position)
        if group != _FILE_META:
            return None
        position += 8
        if vr in _LONG_VRS:
            length = struct.unpack_from("<I", content, position)[0]
            position += 4
        if element == _TRANSFER_SYNTAX:
            transfer_syntax = content[position : position + length].decode("ascii", "replace").rstrip("\0 ")
        position += length
    following = int.from_bytes(content[end : end + 2], "little")
    return (transfer_syntax, end) if transfer_syntax and position == end and following > _FILE_META else None


def _found_syntax(implicit: bool, little: bool) -> str:
    """The transfer syntax of a file that does not name one, by the encoding that pydicom found."""
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _inflate(body: bytes) -> bytes:
    """A deflated data set (PS3.5 A.5), within bounds."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(body, MAX_INFLATED_BYTES)
    if stream.unconsumed_tail:
        raise Refused(Reason.UNREADABLE, "inflates beyond any radiograph")
    if not stream.eof:
        raise Refused(Reason.UNREADABLE, "truncated")
    return inflated
