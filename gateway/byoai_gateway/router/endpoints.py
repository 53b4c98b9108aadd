"""The OpenAI-compatible surface: which calls there are, and how each is read.

Exact method and path, nothing else: `/v1/*` is no safe rule. The agent has a policy of its own.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final


class Dialect(StrEnum):
    """How an answer says that it began, ended or failed."""

    CHAT = "chat"
    COMPLETION = "completion"
    RESPONSES = "responses"
    MESSAGES = "messages"
    """Anthropic's."""
    PLAIN = "plain"
    """JSON or bytes without a grammar of ours: it begins with its first byte."""


class BodyKind(Enum):
    """What a request carries."""

    NONE = auto()
    JSON = auto()
    MULTIPART = auto()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One call of the surface. `path` is relative to `/v1`; its last part may be a name."""

    method: str
    path: str
    body: BodyKind
    dialect: Dialect
    summary: str
    answers: tuple[str, ...]
    """The media types that providers answer with, as the API's description says it. Not checked."""


JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
_TEXT: Final = "text/*"
"""Transcripts and subtitles, and events."""
_AUDIO: Final = "audio/*"


def _get(path: str, summary: str) -> Endpoint:
    return Endpoint("GET", path, BodyKind.NONE, Dialect.PLAIN, summary, (JSON,))


def _post(path: str, summary: str, *answers: str) -> Endpoint:
    return Endpoint("POST", path, BodyKind.JSON, Dialect.PLAIN, summary, answers or (JSON,))


def _stream(path: str, summary: str, dialect: Dialect) -> Endpoint:
    return Endpoint("POST", path, BodyKind.JSON, dialect, summary, (JSON, EVENTS))


def _upload(path: str, summary: str, *answers: str) -> Endpoint:
    return Endpoint("POST", path, BodyKind.MULTIPART, Dialect.PLAIN, summary, answers)


MODELS: Final = _get("/models", "List models")
MODEL: Final = _get("/models/{model}", "Show a model")
CHAT: Final = _stream("/chat/completions", "Answer a conversation", Dialect.CHAT)

ENDPOINTS: Final = (
    MODELS,
    MODEL,
    CHAT,
    _stream("/completions", "Complete a text", Dialect.COMPLETION),
    _post("/embeddings", "Embed texts"),
    _stream("/responses", "Answer, in OpenAI's newer shape", Dialect.RESPONSES),
    _stream("/messages", "Answer, in Anthropic's shape", Dialect.MESSAGES),
    _post("/messages/count_tokens", "Count the tokens of a conversation"),
    _post("/rerank", "Order documents by a question"),
    _post("/score", "Score pairs of texts"),
    _post("/classify", "Classify texts"),
    _post("/audio/speech", "Speak a text", _AUDIO, EVENTS),
    _upload("/audio/transcriptions", "Write speech down", JSON, _TEXT),
    _upload("/audio/translations", "Translate speech", JSON, _TEXT),
    _post("/images/generations", "Make an image", JSON, EVENTS),
    _upload("/images/edits", "Change an image", JSON, EVENTS),
    _upload("/images/variations", "Vary an image", JSON),
)

PREFIX: Final = "/v1"
_MODEL_PREFIX: Final = f"{PREFIX}/models/"
_BY_CALL: Final = {(it.method, PREFIX + it.path): it for it in ENDPOINTS if it is not MODEL}


def find(method: str, target: str) -> Endpoint | None:
    """The endpoint of a request's method and target (its query is not looked at)."""
    path = target.partition("?")[0]
    if method == "GET" and path.startswith(_MODEL_PREFIX) and len(path) > len(_MODEL_PREFIX):
        return MODEL
    return _BY_CALL.get((method, path))


def methods_of(target: str) -> tuple[str, ...]:
    """The methods that the path of a target takes; none if there is nothing."""
    methods = {method for method, _ in _BY_CALL} | {MODEL.method}
    return tuple(sorted(it for it in methods if find(it, target) is not None))
