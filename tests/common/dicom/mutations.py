"""Damaged DICOM files: intact files of every kind, and mutations of them."""

import struct
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from tests.common.dicom.phantoms import LOSSY, SYNTAXES, dataset, encapsulated, lookup_table, picture, to_bytes, without_meta

BOMB_SIDE = 7_000
"""Width and height in pixels, close to the largest image that is decoded."""


def whole_files() -> list[bytes]:
    """Returns files of every transfer syntax, 8 and 12 bits, with a window or a VOI LUT; the last has no preamble and file meta."""
    files = []
    for syntax in SYNTAXES:
        for bits in (LOSSY[syntax],) if syntax in LOSSY else (8, 12):
            pixels = picture(bits=bits)
            if bits == 8:
                made = dataset(pixels, bits, syntax, WindowCenter=["120", "60"], WindowWidth=["200", "100"])
            else:
                made = dataset(pixels, bits, syntax, VOILUTSequence=[lookup_table(0, np.arange(4096) // 4, 10)], RescaleSlope="1")
            files.append(to_bytes(made))
    return [*files, without_meta(dataset(picture(bits=12), 12))]


def mutated(files: list[bytes], number: int) -> bytes:
    """Returns the `number`-th damaged file; the number alone determines the file and its mutations."""
    rng = np.random.default_rng([7, number])
    content = files[rng.integers(len(files))]
    for _ in range(rng.integers(1, 4)):
        content = MUTATIONS[rng.integers(len(MUTATIONS))](content, rng)
    return content


def flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    """Flips a few bits anywhere in the file."""
    spoilt = np.frombuffer(content, np.uint8).copy()
    for at in rng.integers(spoilt.size, size=2 ** rng.integers(7)) if spoilt.size else ():
        spoilt[at] ^= 1 << rng.integers(8)
    return spoilt.tobytes()


def flip_early_bits(content: bytes, rng: np.random.Generator) -> bytes:
    """Flips a few bits of the header."""
    return flip_bits(content[:1500], rng) + content[1500:]


def flip_frame_header(content: bytes, rng: np.random.Generator) -> bytes:
    """Flips a few bits at the beginning of the codestream."""
    at = content.rfind(b"\xe0\x7f\x10\x00")
    return content[:at] + flip_bits(content[at : at + 150], rng) + content[at + 150 :] if at > 0 else content


def truncate(content: bytes, rng: np.random.Generator) -> bytes:
    """Truncates the file, like an interrupted transfer."""
    return content[: rng.integers(len(content) + 1)]


def swap_lengths(content: bytes, rng: np.random.Generator) -> bytes:
    """Swaps the lengths of two elements with an explicit VR."""
    places = [at + 6 for at in range(132, min(len(content), 2000) - 8) if content[at + 4 : at + 6].isalpha()]
    if len(places) < 2:
        return content
    spoilt = bytearray(content)
    one, other = rng.choice(places, 2, replace=False)
    spoilt[one : one + 2], spoilt[other : other + 2] = spoilt[other : other + 2], spoilt[one : one + 2]
    return bytes(spoilt)


def absurd_number(content: bytes, rng: np.random.Generator) -> bytes:
    """Writes an extreme 32-bit number somewhere in the header or the beginning of the codestream."""
    at = int(rng.integers(128, max(129, min(len(content), 2500))))
    value = rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFF, 0])
    return content[:at] + struct.pack("<I", value) + content[at + 4 :]


def absurd_size(content: bytes, rng: np.random.Generator) -> bytes:
    """Changes two of Rows, Columns, Bits Allocated and similar elements."""
    spoilt = bytearray(content)
    for element in rng.choice([0x02, 0x08, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103], 2):
        at = content.find(struct.pack("<HH", 0x28, element))
        if at > 0:
            start = at + 8
            spoilt[start : start + 2] = struct.pack("<H", rng.choice([0, 1, 7, 9, 32, 64, 7000, 30_000, 65_535]))
    return bytes(spoilt)


def splice(content: bytes, rng: np.random.Generator) -> bytes:
    """Overwrites a stretch of the file by another one."""
    if len(content) < 300:
        return content
    length = int(rng.integers(1, 200))
    source, target = rng.integers(0, len(content) - length, 2)
    return content[:target] + content[source : source + length] + content[target + length :]


MUTATIONS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    flip_bits, flip_early_bits, flip_frame_header, truncate, swap_lengths, absurd_number, absurd_size, splice,
)  # fmt: skip


def bombs() -> dict[str, bytes]:
    """Returns small files that expand to a lot of memory, by name."""
    flat = np.zeros((BOMB_SIDE, BOMB_SIDE), np.uint8)
    encoded = {
        JPEG2000Lossless: imagecodecs.jpeg2k_encode(flat, level=0, codecformat="j2k"),
        JPEGLSLossless: imagecodecs.jpegls_encode(flat),
        JPEGBaseline8Bit: imagecodecs.jpeg8_encode(flat),
        RLELossless: struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * (flat.size // 128 + 1),
    }
    files = {f"{syntax.name} of {BOMB_SIDE} pixels a side": _wrap(stream, syntax, BOMB_SIDE) for syntax, stream in encoded.items()}
    enlarged = bytearray(encoded[JPEG2000Lossless])
    struct.pack_into(">2I", enlarged, 8, 60_000, 60_000)
    files["JPEG 2000 of 60,000 pixels a side"] = _wrap(bytes(enlarged), JPEG2000Lossless, 60_000)
    files["deflated zeros"] = deflated = _deflated_zeros(2**30)
    files["deflated zeros without group length"] = deflated[:132] + deflated[144:]
    return files


def _wrap(stream: bytes, syntax: UID, side: int) -> bytes:
    return to_bytes(encapsulated(dataset(picture(), Rows=side, Columns=side), stream, syntax))


def _deflated_zeros(size: int) -> bytes:
    """Returns a deflated file of about a megabyte that inflates to `size` bytes."""
    whole = to_bytes(dataset(picture(), syntax=DeflatedExplicitVRLittleEndian))
    start = 144 + int(struct.unpack_from("<I", whole, 140)[0])
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = bytes(2**20)
    return whole[:start] + b"".join(compressor.compress(block) for _ in range(size // len(block))) + compressor.flush()
