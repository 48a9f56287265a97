"""A queue of messages to a server that may become unavailable. A thread sends them in order, so that the caller never waits."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

RETRY_SECONDS = 5.0  # seconds between attempts while the server is unavailable

log = logging.getLogger(__name__)


class Outbox(Generic[T]):
    """Sends items in order.

    Args:
        send: sends one item; raises ConnectionError if the server is unavailable, and is then called again with the same item.
        server: name of the server, for log messages.
    """

    def __init__(self, send: Callable[[T], None], server: str):
        self._send, self._server = send, server
        self._waiting: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = self._lost = False
        threading.Thread(target=self._work, name="outbox", daemon=True).start()

    @property
    def lost(self) -> bool:
        """Whether the last attempt failed."""
        return self._lost

    def put(self, item: T) -> None:
        """Appends an item; returns at once."""
        with self._changed:
            self._waiting.append(item)
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Waits until everything is sent, at most this long; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    def close(self, seconds: float) -> list[T]:
        """Stops the thread once everything is sent, or after this long; returns the unsent items."""
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
        """Waits for an item; returns False once the outbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return not self._closed

    def _sent(self) -> None:
        with self._changed:
            self._waiting.popleft()
            self._changed.notify_all()
        if self._lost:
            self._lost = False
            log.info("%s is back; sending what it missed", self._server)

    def _wait(self, error: ConnectionError) -> None:
        if not self._lost:
            self._lost = True
            log.warning("%s is lost (%s); the stage continues, and unsent messages follow once it is back", self._server, error)
        with self._changed:
            self._changed.wait_for(lambda: self._closed, RETRY_SECONDS)
