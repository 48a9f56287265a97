"""A queue to a server that may go away: sent in order by a thread of its own, so that nobody waits for the server."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

RETRY_SECONDS = 5.0
"""Between attempts while the server is away."""

log = logging.getLogger(__name__)


class Outbox(Generic[T]):
    """What is to be sent, in order.

    Args:
        send: sends one item; raises ConnectionError when the server is away. The same item may be sent again.
        server: its name, for messages.
    """

    def __init__(self, send: Callable[[T], None], server: str):
        self._send, self._server = send, server
        self._waiting: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = self._lost = False
        threading.Thread(target=self._work, name="outbox", daemon=True).start()

    @property
    def lost(self) -> bool:
        """Whether the server was away at the last attempt."""
        return self._lost

    def put(self, item: T) -> None:
        """Adds an item, at once."""
        with self._changed:
            self._waiting.append(item)
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Waits until all is sent, or so long; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    def close(self, seconds: float) -> list[T]:
        """Ends the thread when all is sent, or after so long; returns what is not."""
        self.flush(seconds)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return list(self._waiting)

    def _work(self) -> None:
        while self._next():
            try:
                self._send(self._waiting[0])
            except ConnectionError as error:
                self._wait(error)
            else:
                self._sent()

    def _next(self) -> bool:
        """Waits for an item; False: there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return not self._closed

    def _sent(self) -> None:
        with self._changed:
            self._waiting.popleft()
            self._changed.notify_all()
        if self._lost:
            self._lost = False
            log.info("%s is back; what it missed is being sent", self._server)

    def _wait(self, error: ConnectionError) -> None:
        if not self._lost:
            self._lost = True
            log.warning("%s is lost (%s); work goes on, and what it misses is sent once it is back", self._server, error)
        with self._changed:
            self._changed.wait_for(lambda: self._closed, RETRY_SECONDS)
