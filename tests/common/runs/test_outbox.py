import threading

import pytest

from components.common.runs import outbox
from components.common.runs.outbox import Outbox


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.01)


class Server:
    """Accepts items while it is up."""

    def __init__(self) -> None:
        self.up = threading.Event()
        self.asked = threading.Event()
        self.taken: list[int] = []

    def take(self, item: int) -> None:
        self.asked.set()
        if not self.up.is_set():
            raise ConnectionError("away")
        self.taken.append(item)


def test_all_is_sent_once_and_in_order() -> None:
    server = Server()
    server.up.set()
    box = Outbox(server.take, "it")
    for item in range(20):
        box.put(item)
    assert box.close(10) == []
    assert server.taken == list(range(20))


def test_an_outage_delays_items_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server = Server()
    box = Outbox(server.take, "it")
    box.put(1)
    assert server.asked.wait(10)
    box.put(2)
    assert not box.flush(0.1)  # many attempts later
    assert box.lost
    server.up.set()
    assert box.flush(10)
    assert not box.lost
    assert server.taken == [1, 2]
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["it is lost (away)", "it is back"]


def test_unsent_items_are_returned() -> None:
    box = Outbox(Server().take, "it")
    box.put(1)
    box.put(2)
    assert box.close(0.05) == [1, 2]


def test_putting_never_waits_for_a_server_that_hangs() -> None:
    hanging = threading.Event()
    box: Outbox[int] = Outbox(lambda item: hanging.wait(60) and None, "it")
    for item in range(1000):
        box.put(item)
    assert len(box.close(0.05)) == 1000
    hanging.set()
