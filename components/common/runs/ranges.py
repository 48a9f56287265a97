"""Objects on S3 that are read in ranges of bytes, so that a column or a row group does not cost the whole object."""

import io

from components.common.errors import UserError
from components.common.runs import storage


class RangedObject(io.RawIOBase):
    """An object as a file for reading; each read is a request. It is refused if it is replaced after it was first looked at."""

    def __init__(self, uri: str, size: int, etag: str):
        self._uri, self._size, self._etag, self._at = uri, size, etag, 0

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from any position."""
        return True

    def tell(self) -> int:
        """Returns the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a position, and returns it."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Reads up to `size` bytes, or to the end."""
        end = self._size if size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        content = storage.read(self._uri, Range=f"bytes={self._at}-{end - 1}", IfMatch=self._etag)
        if len(content) != end - self._at:
            raise UserError(
                f"{self._uri}: the S3 server answered {len(content)} bytes to a request for {end - self._at}; use another server"
            )
        self._at = end
        return content
