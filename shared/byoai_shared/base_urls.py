"""The base URL of an OpenAI-compatible server: what people append to it, and what they leave out.

Clients append `/chat/completions`, `/models` and so on to a base URL that ends with a version,
such as `/v1`. Pure: it looks at text only, and knows no server.
"""

import re
from typing import Final
from urllib.parse import SplitResult, urlunsplit

DEFAULT_VERSION: Final = "/v1"
_ENDPOINTS: Final = (
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/models",
    "/responses",
    "/messages/count_tokens",
    "/messages",
    "/rerank",
    "/audio/speech",
    "/audio/transcriptions",
    "/audio/translations",
    "/images/generations",
    "/images/edits",
    "/images/variations",
    "/moderations",
    # Ollama's own API, which lies beside /v1.
    "/api/chat",
    "/api/generate",
    "/api/tags",
    "/api/embed",
)
_VERSION: Final = re.compile(r"/v[0-9]+[a-z0-9]*(?:/|$)", re.IGNORECASE)


def endpoint_at_end(path: str) -> str | None:
    """Return the endpoint that a base URL's path ends with, as it is written there."""
    bare = path.rstrip("/")
    lower = bare.lower()
    found = next((it for it in _ENDPOINTS if lower.endswith(it)), None)
    return None if found is None else bare[len(bare) - len(found) :]


def has_version(path: str) -> bool:
    """Whether a segment of the path is a version: `/v1`, `/openai/v1`, `/v1beta/openai`."""
    return _VERSION.search(path) is not None


def corrected(parts: SplitResult) -> str:
    """Return the URL without the endpoint at its end, and with a version."""
    path = parts.path.rstrip("/")
    path = path.removesuffix(endpoint_at_end(path) or "")
    path = path if has_version(path) else path + DEFAULT_VERSION
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def has_blank_or_control(url: str) -> bool:
    """Whether a URL holds what `urlsplit` drops or accepts and no URL may (RFC 3986)."""
    return not url.isprintable() or any(character.isspace() for character in url)
