"""A double of a webhook on the loopback interface, and the formats that Slack and Microsoft Teams document."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jsonschema
import pytest

from components.common.runs.webhook import FORMAT_VARIABLE, URL_VARIABLE
from tests.http_server import in_background

SECRET = "/services/T0123/B4567/a-secret-9f2c"


def _of(kind: str, needed: dict[str, Any], **allowed: Any) -> dict[str, Any]:
    """Returns the schema of an object with a field `type`, without further properties."""
    properties = {"type": {"const": kind}, **needed, **allowed}
    return {"type": "object", "properties": properties, "required": ["type", *needed], "additionalProperties": False}


def _text(longest: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": longest}


def _list(items: dict[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


SCHEMAS: dict[str, dict[str, Any]] = {
    # docs.slack.dev: messaging/sending-messages-using-incoming-webhooks, reference/block-kit/blocks/{header,section}-block
    "slack": {
        "type": "object",
        "properties": {
            "text": _text(40_000),
            "blocks": _list(
                {
                    "oneOf": [
                        _of("header", {"text": _of("plain_text", {"text": _text(150)})}),
                        _of("section", {"text": _of("mrkdwn", {"text": _text(3000)})}),
                    ]
                },
                50,
            ),
        },
        "required": ["text", "blocks"],
        "additionalProperties": False,
    },
    # learn.microsoft.com: microsoftteams/platform/webhooks-and-connectors/how-to/connectors-using ("Send Adaptive Cards"); the card by
    # adaptivecards.io/schemas/adaptive-card.json, version 1.2
    "teams": _of(
        "message",
        {
            "attachments": _list(
                {
                    "type": "object",
                    "properties": {
                        "contentType": {"const": "application/vnd.microsoft.card.adaptive"},
                        "contentUrl": {"type": "null"},
                        "content": _of(
                            "AdaptiveCard",
                            {
                                "version": {"const": "1.2"},
                                "body": _list(
                                    {
                                        "oneOf": [
                                            _of(
                                                "TextBlock",
                                                {"text": _text(1000)},
                                                size={"enum": ["default", "small", "medium", "large", "extraLarge"]},
                                                weight={"enum": ["default", "lighter", "bolder"]},
                                                color={"enum": ["default", "dark", "light", "accent", "good", "warning", "attention"]},
                                                wrap={"type": "boolean"},
                                            ),
                                            _of(
                                                "FactSet",
                                                {
                                                    "facts": _list(
                                                        {
                                                            "type": "object",
                                                            "properties": {"title": _text(100), "value": _text(1000)},
                                                            "required": ["title", "value"],
                                                            "additionalProperties": False,
                                                        },
                                                        50,
                                                    )
                                                },
                                            ),
                                        ]
                                    },
                                    10,
                                ),
                            },
                            **{"$schema": {"type": "string"}},
                            actions=_list(
                                _of("Action.OpenUrl", {"url": {"type": "string", "pattern": "^https?://"}}, title={"type": "string"}), 5
                            ),
                        ),
                    },
                    "required": ["contentType", "content"],
                    "additionalProperties": False,
                },
                1,
            )
        },
    ),
    "json": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "outcome": {"enum": ["succeeded", "failed", "cancelled"]},
            "alarm": {"type": "boolean"},
            "facts": {"type": "object", "additionalProperties": {"type": "string"}},
            "link": {"type": "string"},
        },
        "required": ["name", "outcome", "alarm", "facts", "link"],
        "additionalProperties": False,
    },
}
"""What may be sent, by format: the parts of the documented formats that are used."""


class Webhook(ThreadingHTTPServer):
    """The messages that have arrived, and the answers to the next ones."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages: list[dict[str, Any]] = []
        self.answers: list[int] = []
        """Statuses of the next answers, 0 for a connection that is closed without one; then 200."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.answers.pop(0) if self.server.answers else 200
        if self.path == SECRET and self.headers["Content-Type"] == "application/json" and status in (0, 200):
            self.server.messages.append(json.loads(body))
        if status:
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"{self.server.address}/elsewhere")
            self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serve(monkeypatch: pytest.MonkeyPatch, format: str = "json") -> Iterator[Webhook]:
    """Runs a webhook that the environment names."""
    server = Webhook()
    with in_background(server):
        monkeypatch.setenv(URL_VARIABLE, f"{server.address}\n")  # as `echo` writes it into a Secret
        monkeypatch.setenv(FORMAT_VARIABLE, format)
        yield server


def check(message: dict[str, Any], format: str) -> None:
    """Fails if a message does not have the documented format."""
    jsonschema.validate(message, SCHEMAS[format])
