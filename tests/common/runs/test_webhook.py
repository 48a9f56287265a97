"""Messages in the formats of Slack and Teams, and a webhook that does not take them."""

import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from components.common.runs import webhook
from components.common.runs.webhook import FORMAT_VARIABLE, URL_VARIABLE, Message, post
from tests import webhook as double

PLAIN = Message(
    "training", "succeeded", False, {"evaluate": "classify: Macro AUROC 0.869 (0.819 to 0.913)"}, "https://kubeflow.example.org/1"
)
MESSAGES = {
    "training: succeeded": PLAIN,
    "training: failed": PLAIN._replace(outcome="failed", facts={"not finished": "preprocess and <merge> & others"}),
    "training: cancelled": PLAIN._replace(outcome="cancelled", facts={}),
    "training: alarm": PLAIN._replace(alarm=True, facts={f"monitor {number}": "view changed; " * 100 for number in range(20)}),
    "training: failed, alarm": PLAIN._replace(outcome="failed", alarm=True, link=""),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[double.Webhook]:
    monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.0)
    with double.serve(monkeypatch) as running:
        yield running


@pytest.mark.parametrize("name", webhook.FORMATS)
@pytest.mark.parametrize("title", MESSAGES)
def test_messages_have_the_documented_format(name: str, title: str, server: double.Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, name)
    message = MESSAGES[title]
    assert post(message)
    (sent,) = server.messages
    double.check(sent, name)
    text = json.dumps(sent, ensure_ascii=False)
    assert name == "json" or f'"{title}"' in text
    assert (message.link in text) and ("<merge>" in text) == ("<merge>" in str(message.facts) and name != "slack")
    assert len(text) < 28 * 1024, "the limit of Teams" if name == "teams" else ""


def test_the_example_of_the_documentation_is_what_slack_takes() -> None:
    """Slack reads &, < and > as markup, and nothing else has to be escaped."""
    sent = webhook.slack(MESSAGES["training: failed"])
    assert sent["blocks"][1]["text"]["text"] == "*not finished*: preprocess and &lt;merge&gt; &amp; others"
    assert sent["blocks"][2]["text"]["text"] == "<https://kubeflow.example.org/1|Open the run>"


@pytest.mark.parametrize(
    ("answers", "arrived", "said"),
    [
        ([503, 429], 1, ""),
        ([503, 500, 502], 0, "answers 502"),
        ([404], 0, "answers 404"),
        ([302], 0, "answers 302"),
        ([0], 1, "has not answered (RemoteDisconnected), and may have got the message"),
    ],
)
def test_what_is_refused_is_tried_again_and_what_may_have_arrived_is_not(
    answers: list[int], arrived: int, said: str, server: double.Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers[:] = answers
    assert post(PLAIN) == (not said)
    assert (len(server.messages), server.answers) == (arrived, [])
    assert said in caplog.text and ("WARNING" in caplog.text) == bool(said)


def closed() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "address",
    [
        f"http://127.0.0.1:CLOSED{double.SECRET}",
        f"https://127.0.0.1:CLOSED{double.SECRET}",
        f"file://{double.SECRET}",
        f"hooks.example.org{double.SECRET}",
        f"http://{double.SECRET}",
        f"http://[::1{double.SECRET}",
        f"http://127.0.0.1:port{double.SECRET}",
        f"http://127.0.0.1:9/a b{double.SECRET}",
        f"http://127.0.0.1:9/ö{double.SECRET}",
        "http://user:a-secret-9f2c@127.0.0.1:CLOSED/",
    ],
)
def test_an_address_is_never_printed(
    address: str,
    server: double.Webhook,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(URL_VARIABLE, address.replace("CLOSED", str(closed())))
    with caplog.at_level(logging.DEBUG):
        assert not post(PLAIN)
    assert "webhook: no message, since the server" in caplog.text
    shown = caplog.text + "".join(capfd.readouterr())
    assert "a-secret-9f2c" not in shown and "127.0.0.1" not in shown and "Traceback" not in shown


@pytest.mark.parametrize(
    ("changes", "warns"),
    [
        ({URL_VARIABLE: "", FORMAT_VARIABLE: ""}, False),
        ({URL_VARIABLE: ""}, True),
        ({FORMAT_VARIABLE: ""}, True),
        ({FORMAT_VARIABLE: "discord"}, True),
    ],
)
def test_no_message_without_a_complete_setting(
    changes: dict[str, Any], warns: bool, server: double.Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable, value in changes.items():
        monkeypatch.setenv(variable, value)
    assert not post(PLAIN)
    assert not server.messages
    assert ("it needs an address in CXR_WEBHOOK_URL and one of slack, teams, json in CXR_WEBHOOK_FORMAT" in caplog.text) == warns
