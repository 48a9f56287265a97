"""HTTP servers that run in a thread of the test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

POLL_SECONDS = 0.01  # until the end of the test is noticed; the default of 0.5 s is the longest part of most tests


@contextmanager
def in_background(server: ThreadingHTTPServer) -> Iterator[None]:
    """Answers requests until the context ends, and closes the server."""
    thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
