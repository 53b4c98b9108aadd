"""What a model server's answer to `GET /v1/models` means, and what to do when it is no list.

Pure. Model servers differ most before they are ready, and other programs answer on their ports.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from byoai_agent.models import Target, parse_listing
from byoai_shared.http1.head import ResponseHead

_BUSY: Final = frozenset({429, 502, 503, 504})
_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class Listing:
    """What one look at an address found."""

    models: tuple[dict[str, object], ...] | None = None
    """None unless it answered like a model server."""
    fault: str = ""
    """Why not, for people."""
    wants_key: bool = False
    refused: bool = False
    """No connection could be made."""
    is_waiting: bool = False
    """A model server that will answer by itself: it is loading a model, or busy."""


def read_listing(target: Target, head: ResponseHead, body: bytes) -> Listing:
    """Say what an answer means."""
    status = head.status
    if status in {401, 403}:
        return Listing(fault=f"it wants an API key (status {status})", wants_key=True)
    if status == 200:
        models = parse_listing(body)
        return Listing(fault=_no_list(head, body)) if models is None else Listing(models=models)
    if status in _BUSY and (waiting := _waiting(body)):
        return Listing(fault=waiting, is_waiting=True)
    return Listing(fault=_failure(target, head, body))


def _waiting(body: bytes) -> str:
    """Say what a server waits for, if its error says so: llama.cpp and KoboldCpp do."""
    text = body[:2000].lower()
    if text.lstrip().startswith(b"<"):
        return ""
    if b"loading" in text:
        return "it is loading its model"
    return "it is busy" if b"busy" in text or b"overloaded" in text else ""


def _no_list(head: ResponseHead, body: bytes) -> str:
    if _is_page(head, body):
        return (
            "it answers with a web page, not a list of models; check the port and the path, and "
            "whether a sign-in page answers in its place"
        )
    return "it does not list models (status 200); check that it is an OpenAI-compatible server"


def _failure(target: Target, head: ResponseHead, body: bytes) -> str:
    status = head.status
    if 300 <= status < 400:
        return f"it redirects to {_location(head)} (status {status}); name that address instead"
    if status == 400 and not target.is_tls and b"https" in body.lower():
        return "it uses TLS on this port; write https:// instead of http://"
    if status == 404:
        return (
            f"it has no {target.prefix}/v1/models (status 404); check the path, and that it is an "
            "OpenAI-compatible server"
        )
    if status >= 500:
        return f"it cannot list its models (status {status}); look at its own log"
    return f"it does not list models (status {status})"


def _location(head: ResponseHead) -> str:
    """The place that a redirect leads to, as far as it is fit to be shown."""
    raw = (head.header(b"location") or b"").decode("ascii", "replace")
    try:
        parts = urlsplit(raw)
    except ValueError:
        return "another address"
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    fit = parts.netloc and shown.isascii() and shown.isprintable() and len(shown) <= _SHOWN
    return shown if fit else "another address"


def _is_page(head: ResponseHead, body: bytes) -> bool:
    kind = (head.header(b"content-type") or b"").lower()
    return b"html" in kind or body.lstrip()[:1] == b"<"
