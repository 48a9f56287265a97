"""Ways to damage the files that stages leave for each other."""

from collections.abc import Callable

TEXT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "not text": lambda content: b"\xff\xfe" + content,
    "a list": lambda content: b"[1]",
    "null": lambda content: b"null",
    "nested lists": lambda content: b"[" * 200_000,
    "nested objects": lambda content: b'{"a":' * 200_000,
    "a number of 5000 digits": lambda content: b'{"schema_version": ' + b"9" * 5000 + b"}",
    "Parquet": lambda content: b"PAR1" + content + b"PAR1",
}
"""What can happen to any JSON document."""

BINARY: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "without its footer": lambda content: content[:-100],
    "footer of another length": lambda content: content[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
    "footer of zeros": lambda content: content[: -8 - _footer(content)] + bytes(_footer(content)) + content[-8:],
    "beginning of zeros": lambda content: bytes(len(content) // 2) + content[len(content) // 2 :],
    "text": lambda content: b"image_id,pixels\n" * 100,
}
"""What can happen to any Parquet file."""


def claim_rows(content: bytes, rows: int, claimed: int, everywhere: bool) -> bytes:
    """Changes the number of rows in the footer of a Parquet file, or all equal numbers of 64 bits there (Thrift's compact protocol)."""
    length = _footer(content)
    body, footer = content[: -8 - length], content[-8 - length : -8]
    old, new = (b"\x16" + _varint(2 * number) for number in (rows, claimed))
    end, most = (b"", -1) if everywhere else (b"\x19", 1)  # the field of the file stands before the list of row groups
    changed = footer.replace(old + end, new + end, most)
    assert changed != footer
    return body + changed + len(changed).to_bytes(4, "little") + b"PAR1"


def _footer(content: bytes) -> int:
    return int.from_bytes(content[-8:-4], "little")


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])
