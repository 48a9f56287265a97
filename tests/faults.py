"""A proxy on the loopback interface that forwards requests to a server and injects network and server failures."""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.http_server import in_background

KINDS = ("503", "500", "hang up", "cut", "silence", "stall")
"""503 Slow Down; 500 Internal Error; no answer; half an answer; and the last two with the connection kept open for PATIENCE."""
PATIENCE = 2.0
"""Seconds."""
_HOP_BY_HOP = ("connection", "expect", "keep-alive", "transfer-encoding")


class Proxy(ThreadingHTTPServer):
    """Fails every `period`-th request, cycling through KINDS."""

    daemon_threads = True

    def __init__(self, upstream: str, period: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.faults: Counter[str] = Counter()
        self._period, self._requests = period, 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self) -> str:
        """The kind of fault for the request that just arrived; empty if it is passed on."""
        with self._lock:
            self._requests += 1
            if self._requests % self._period:
                return ""
            kind = KINDS[self._requests // self._period % len(KINDS)]
            self.faults[kind] += 1
            return kind

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _relay(self) -> None:
        body = self._body()
        fault = self.server.next_fault()
        if fault in ("hang up", "silence"):
            time.sleep(PATIENCE if fault == "silence" else 0)
            self.close_connection = True
        elif fault.isdigit():
            self._answer(int(fault), [], b"<Error><Code>SlowDown</Code></Error>")
        else:
            self._forward(body, cut=fault in ("cut", "stall"))
            time.sleep(PATIENCE if fault == "stall" else 0)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _relay  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, body: bytes, cut: bool) -> None:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():  # keep Host: the client's signature covers it
            if name.lower() not in (*_HOP_BY_HOP, "content-length"):
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        self._answer(answer.status, answer.getheaders(), content, cut)
        connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP and not (name.lower() == "content-length" and self.command != "HEAD"):
                self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing."""


@contextmanager
def serve(upstream: str, period: int) -> Iterator[Proxy]:
    """Runs the proxy in front of the server at the URL `upstream`."""
    proxy = Proxy(upstream, period)
    with in_background(proxy):
        yield proxy
