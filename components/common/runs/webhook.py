"""Messages to a webhook, such as that of a Slack channel: the outcome of a run, its results in a few words, and a link.

The address of a webhook is a secret, since whoever has it can post. It comes from the environment, and nothing here prints it, nor what
the server answers. Messages name no file, image or patient.
"""

import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

URL_VARIABLE = "CXR_WEBHOOK_URL"
FORMAT_VARIABLE = "CXR_WEBHOOK_FORMAT"
PAGE_VARIABLE = "CXR_RUN_PAGE"  # set by a pipeline: address of a run in its UI, to which the id is added
TIMEOUT_SECONDS = 10.0  # of each attempt
ATTEMPTS = 3
PAUSE_SECONDS = 2.0
LONGEST_FACT, LONGEST_TEXT = 500, 3000  # characters; the second is Slack's limit of a section

log = logging.getLogger(__name__)


class Message(NamedTuple):
    """The outcome of a run."""

    name: str  # what ran: a pipeline or a stage
    outcome: str  # succeeded, failed or cancelled
    alarm: bool  # whether `monitor` has raised one
    facts: Mapping[str, str]  # results in a few words
    link: str  # address of the run; may be empty

    @property
    def title(self) -> str:
        """The first line."""
        outcomes = [self.outcome] if self.outcome != "succeeded" or not self.alarm else []
        return f"{self.name}: {', '.join([*outcomes, *(['alarm'] if self.alarm else [])])}"

    @property
    def short_facts(self) -> dict[str, str]:
        """The facts, cut to a length that all formats take."""
        return {name: text if len(text) <= LONGEST_FACT else f"{text[: LONGEST_FACT - 1]}…" for name, text in self.facts.items()}


def slack(message: Message) -> dict[str, Any]:
    """Formats for an incoming webhook of Slack: blocks, and the text of the notification."""
    lines = [f"*{_escape(name)}*: {_escape(text)}" for name, text in message.short_facts.items()]
    link = [f"<{_escape(message.link)}|Open the run>"] if message.link else []
    sections = [
        {"type": "section", "text": {"type": "mrkdwn", "text": text[:LONGEST_TEXT]}} for text in ("\n".join(lines), "".join(link)) if text
    ]
    header = {"type": "header", "text": {"type": "plain_text", "text": message.title[:150]}}
    return {"text": _escape(message.title), "blocks": [header, *sections]}


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def teams(message: Message) -> dict[str, Any]:
    """Formats for the Workflows app of Microsoft Teams: a message with an Adaptive Card."""
    good = message.outcome == "succeeded" and not message.alarm
    color = "good" if good else "attention" if message.outcome == "failed" else "warning"
    body: list[dict[str, Any]] = [
        {"type": "TextBlock", "text": message.title, "size": "large", "weight": "bolder", "color": color, "wrap": True}
    ]
    if message.facts:
        body.append({"type": "FactSet", "facts": [{"title": name, "value": text} for name, text in message.short_facts.items()]})
    card: dict[str, Any] = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.2",
        "body": body,
    }
    if message.link:
        card["actions"] = [{"type": "Action.OpenUrl", "title": "Open the run", "url": message.link}]
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


def plain(message: Message) -> dict[str, Any]:
    """Formats for programs."""
    return {**message._asdict(), "facts": dict(message.facts)}


FORMATS: dict[str, Callable[[Message], dict[str, Any]]] = {"slack": slack, "teams": teams, "json": plain}


def post(message: Message) -> bool:
    """Posts a message if the environment names a webhook, and returns whether it has; a failure is logged as a warning."""
    address, name = os.environ.get(URL_VARIABLE, "").strip(), os.environ.get(FORMAT_VARIABLE, "")
    if not address and not name:
        return False
    if not address or name not in FORMATS:
        known = ", ".join(FORMATS)
        log.warning("webhook: no message, since it needs an address in %s and one of %s in %s", URL_VARIABLE, known, FORMAT_VARIABLE)
        return False
    body = json.dumps(FORMATS[name](message)).encode()
    problem = ""
    for attempt in range(ATTEMPTS):
        time.sleep(attempt * PAUSE_SECONDS)
        problem, again = _send(address, body)
        if not problem:
            log.info("webhook: posted that %s", message.title)
            return True
        if not again:
            break
    log.warning("webhook: no message, since the server %s; check %s and %s", problem, URL_VARIABLE, FORMAT_VARIABLE)
    return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for an error: the message is meant for the address that was given."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _send(address: str, body: bytes) -> tuple[str, bool]:
    """Makes one attempt.

    Returns:
        What is wrong, or nothing, without the words of an exception, which may quote the address; and whether another attempt makes
        sense. That is not so if the message may have arrived, since nobody wants it twice.
    """
    try:
        if urlsplit(address).scheme not in ("http", "https"):
            return "has no address of the form https://...", False
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310 - checked above
        urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        return f"answers {error.code}", error.code == 429 or error.code >= 500
    except urllib.error.URLError as error:
        return f"cannot be reached ({type(error.reason).__name__})", True
    except (ValueError, http.client.InvalidURL):
        return "has a malformed address", False
    except (OSError, http.client.HTTPException) as error:
        return f"has not answered ({type(error).__name__}), and may have got the message", False
    return "", False
