"""Whether a JPEG codestream holds the pixels that its header claims: libjpeg fills in middle gray for those that are missing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from components.common.dicom.refusal import Refused
from components.common.formats.quarantine import Reason

BLOCK = 8  # side of a block in pixels, 1 in a lossless image; each takes at least one bit (ISO/IEC 10918-1 F.1.2, G.1.2 and H.1.2)
_END = b"\xff\xd9"
_MORE_DATA = [
    b"".join(bytes(range(0x11, 0xEE)) + bytes([0xFF, 0xD0 + marker % 8]) for marker in range(first, first + 8)) for first in (0, 4)
]
"""With restart markers, which come in turn: the decoder finds the one it expects in at least one of them (B.2.1)."""


def check_length(data: bytes, height: int, width: int, block: int = BLOCK) -> None:
    """Raises Refused if the data are too short for that many blocks of `block` pixels a side, before anything is decoded."""
    if height * width > 8 * len(data) * block**2:
        raise _too_short(height, width)


def check_end(data: bytes, decoded: npt.NDArray[Any], middle: int, decode: Callable[[bytes], npt.NDArray[Any]]) -> None:
    """Raises Refused if the data end before the last block of an image (H, W) or (H, W, channels), where `middle` is middle gray.

    If the last block is gray, the data are decoded again with more behind them: that changes the pixels only if some are missing.
    """
    top, left = ((side - 1) // BLOCK * BLOCK for side in decoded.shape[:2])
    if (decoded[top:, left:] != middle).any():
        return
    end = data.rfind(_END)
    if any(not np.array_equal(decode(data[:end] + more + data[end:]), decoded) for more in _MORE_DATA):
        raise _too_short(*decoded.shape[:2])


def _too_short(height: int, width: int) -> Refused:
    return Refused(Reason.UNREADABLE, f"too short for {height} x {width} pixels")
