"""DICOM files: bytes to header and stored values. Any error of a parser or decoder makes the file unreadable."""

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
from components.common.dicom.decoders import prepare_frame
from components.common.dicom.elements import Elements, read_plain
from components.common.dicom.grayscale import Decoded, read_grayscale
from components.common.dicom.header import Header, read_header
from components.common.dicom.refusal import Refused
from components.common.formats.quarantine import Reason

# Its warnings and log quote header values, which may identify a patient.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

MAX_INFLATED_BYTES = 2 * MAX_PIXELS + 2**24
_FIRST_TAGS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_FILE_META = 2
_TRANSFER_SYNTAX = 0x10
_LONG_VRS = (b"OB", b"UN")  # VRs of file meta whose length takes four bytes, after two reserved ones
_PIXEL_DATA_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")


def open_file(content: bytes) -> tuple[Elements, Header]:
    """Parses a file; raises Refused if it is not DICOM, or truncated before the pixels."""
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


def prepare(elements: Elements, header: Header) -> Callable[[], Decoded]:
    """Returns a function that decodes the frame; both raise Refused if it is undecodable or does not fit the header."""

    def decode() -> Decoded:
        with _refusing(Reason.UNREADABLE):
            return Decoded(decode_frame(), grayscale)

    with _refusing(Reason.UNREADABLE):
        grayscale = read_grayscale(elements, header)
        decode_frame = prepare_frame(elements, header, grayscale)
    return decode


@contextmanager
def _refusing(reason: Reason) -> Iterator[None]:
    """Turns any exception into a refusal of the file, since parsers and decoders raise anything, and drops warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (Refused, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of the RLE decoder, which is written in Rust, are no Exception
        raise Refused(reason, type(error).__name__) from None


def _parse(content: bytes) -> tuple[Elements, str]:
    """Returns the data set and its transfer syntax. Plain file meta is read here: pydicom takes as long for it as for the data set."""
    meta = _read_file_meta(content)
    if meta is None:
        if DeflatedExplicitVRLittleEndian.encode() in content[:1024]:
            raise Refused(Reason.UNREADABLE, "deflated, after odd file meta")  # pydicom inflates without bounds
        dataset = dcmread(BytesIO(content), force=True)
        return Elements.of(dataset), str(dataset.file_meta.get("TransferSyntaxUID") or "") or _guess_syntax(*dataset.original_encoding)
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
    """Returns transfer syntax and end of the file meta (PS3.10 7.1); None if it is missing or nonstandard."""
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


def _guess_syntax(implicit: bool, little: bool) -> str:
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _inflate(body: bytes) -> bytes:
    """Inflates a deflated data set (PS3.5 A.5), up to MAX_INFLATED_BYTES."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(body, MAX_INFLATED_BYTES)
    if stream.unconsumed_tail:
        raise Refused(Reason.UNREADABLE, "inflates beyond any radiograph")
    if not stream.eof:
        raise Refused(Reason.UNREADABLE, "truncated")
    return inflated
