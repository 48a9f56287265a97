"""DICOM files: bytes to header and stored values. Any error of a parser or decoder makes the file unreadable."""

import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO

from pydicom import config
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import VR

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
INFLATED_STEP = 2**18  # bytes that are taken in or given out at a time
_PREAMBLE = 132  # length of preamble and prefix (PS3.10 7.1)
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
    with _refusing(Reason.UNREADABLE if preamble else Reason.NOT_DICOM, "the header cannot be parsed"):
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
        with _refusing(Reason.UNREADABLE, "the pixels cannot be decoded"):
            return Decoded(decode_frame(), grayscale)

    with _refusing(Reason.UNREADABLE, "an attribute of the image cannot be read"):
        decode_frame, word = prepare_frame(elements, header)
        grayscale = read_grayscale(elements, header, word)
    return decode


@contextmanager
def _refusing(reason: Reason, failure: str) -> Iterator[None]:
    """Turns any exception into a refusal of the file, since parsers and decoders raise anything, and drops warnings.

    The detail is `failure`: messages of exceptions may quote the header.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (Refused, KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # panics of the RLE decoder, which is written in Rust, are no Exception
        raise Refused(reason, failure) from None


def _parse(content: bytes) -> tuple[Elements, str]:
    """Returns the data set and its transfer syntax. Plain file meta is read here: pydicom takes as long for it as for the data set.

    The data set is inflated here as well, since `dcmread` of pydicom inflates without bounds.
    """
    transfer_syntax, start = _read_file_meta(content) or _read_odd_file_meta(content)
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


def _read_odd_file_meta(content: bytes) -> tuple[str, int]:
    """Returns transfer syntax and end of file meta without group length or with unusual elements, or of none at all."""
    stream = BytesIO(content)
    stream.seek(_PREAMBLE if content[128:_PREAMBLE] == b"DICM" else 0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != _FILE_META)
    return str(meta.get("TransferSyntaxUID") or "") or _guess_syntax(content, stream.tell()), stream.tell()


def _guess_syntax(content: bytes, start: int) -> str:
    """Guesses by the first element of the data set: its VR is explicit if there is one, and its group is below 256."""
    if content[start + 4 : start + 6].decode("latin-1") not in set(VR):
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if content[start + 1 : start + 2] == b"\0" else ExplicitVRBigEndian


def _inflate(body: bytes) -> bytes:
    """Inflates a deflated data set (PS3.5 A.5), up to MAX_INFLATED_BYTES."""
    stream, inflated = zlib.decompressobj(-zlib.MAX_WBITS), BytesIO()
    # In steps, since zlib doubles its buffer: memory would grow to twice the limit before the file is refused.
    for start in range(0, len(body), INFLATED_STEP):
        rest = body[start : start + INFLATED_STEP]
        given = INFLATED_STEP
        while (rest or given == INFLATED_STEP) and not stream.eof:  # after a whole step, zlib may hold back output without input
            given = inflated.write(stream.decompress(rest, INFLATED_STEP))
            rest = stream.unconsumed_tail
            if inflated.tell() > MAX_INFLATED_BYTES:
                raise Refused(Reason.UNREADABLE, "inflates beyond any radiograph")
    if not stream.eof:
        raise Refused(Reason.UNREADABLE, "truncated")
    return inflated.getvalue()
