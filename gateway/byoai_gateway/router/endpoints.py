"""The OpenAI-compatible surface: which calls there are, and how each is read.

Exact method and path, nothing else: `/v1/*` is no safe rule. The agent has a policy of its own.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Final, NamedTuple


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


class Member(NamedTuple):
    """A member at the top level of an answer."""

    name: str
    begins: bytes
    """The first bytes that its value may have in JSON: they tell the type."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What the top level of a whole answer must hold to be an answer at all; no more than that."""

    required: tuple[tuple[Member, ...], ...] = ()
    """One member of each group."""
    may_be_array: bool = False
    """Some servers answer with the bare list."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One call of the surface. `path` is relative to `/v1`; its last part may be a name."""

    method: str
    path: str
    body: BodyKind
    dialect: Dialect
    summary: str
    answers: tuple[str, ...]
    """The media types that providers answer with, as the API's description says it."""
    schema: Schema = field(default_factory=Schema)
    """Of an answer in JSON."""
    is_json: bool = field(init=False)
    """Whether every answer is JSON, or events, whatever its label says."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_json", _JSON_OR_EVENTS.issuperset(self.answers))


JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
_TEXT: Final = "text/*"
"""Transcripts and subtitles, and events."""
_AUDIO: Final = "audio/*"
_JSON_OR_EVENTS: Final = frozenset({JSON, EVENTS})

_ARRAY: Final = b"["
_STRING: Final = b'"'
_NUMBER: Final = b"-0123456789"
_CHOICES: Final = Schema(((Member("choices", _ARRAY),),))
_DATA: Final = Schema(((Member("data", _ARRAY),),))
_LIST: Final = Schema(((Member("data", b"[n"),),), may_be_array=True)
"""Of models; Ollama writes null when it has none."""
_CARD: Final = Schema(((Member("id", _STRING), Member("object", _STRING)),))
_RESPONSE: Final = Schema(((Member("output", _ARRAY), Member("object", _STRING)),))
_MESSAGE: Final = Schema(((Member("content", _ARRAY),), (Member("type", _STRING),)))
_COUNT: Final = Schema(((Member("input_tokens", _NUMBER),),))
_RANKING: Final = Schema(((Member("results", _ARRAY), Member("data", _ARRAY)),), may_be_array=True)
_ANY_JSON: Final = Schema(may_be_array=True)
_TRANSCRIPT: Final = Schema(((Member("text", _STRING),),))
_IMAGES: Final = Schema(((Member("data", _ARRAY), Member("images", _ARRAY)),))


def _get(path: str, summary: str, schema: Schema) -> Endpoint:
    return Endpoint("GET", path, BodyKind.NONE, Dialect.PLAIN, summary, (JSON,), schema)


def _post(path: str, summary: str, schema: Schema, *answers: str) -> Endpoint:
    kinds = answers or (JSON,)
    return Endpoint("POST", path, BodyKind.JSON, Dialect.PLAIN, summary, kinds, schema)


def _stream(path: str, summary: str, dialect: Dialect, schema: Schema) -> Endpoint:
    return Endpoint("POST", path, BodyKind.JSON, dialect, summary, (JSON, EVENTS), schema)


def _upload(path: str, summary: str, schema: Schema, *answers: str) -> Endpoint:
    return Endpoint("POST", path, BodyKind.MULTIPART, Dialect.PLAIN, summary, answers, schema)


MODELS: Final = _get("/models", "List models", _LIST)
MODEL: Final = _get("/models/{model}", "Show a model", _CARD)
CHAT: Final = _stream("/chat/completions", "Answer a conversation", Dialect.CHAT, _CHOICES)

ENDPOINTS: Final = (
    MODELS,
    MODEL,
    CHAT,
    _stream("/completions", "Complete a text", Dialect.COMPLETION, _CHOICES),
    _post("/embeddings", "Embed texts", _DATA),
    _stream("/responses", "Answer, in OpenAI's newer shape", Dialect.RESPONSES, _RESPONSE),
    _stream("/messages", "Answer, in Anthropic's shape", Dialect.MESSAGES, _MESSAGE),
    _post("/messages/count_tokens", "Count the tokens of a conversation", _COUNT),
    _post("/rerank", "Order documents by a question", _RANKING),
    _post("/score", "Score pairs of texts", _ANY_JSON),
    _post("/classify", "Classify texts", _ANY_JSON),
    _post("/audio/speech", "Speak a text", Schema(), _AUDIO, EVENTS),
    _upload("/audio/transcriptions", "Write speech down", _TRANSCRIPT, JSON, _TEXT),
    _upload("/audio/translations", "Translate speech", _TRANSCRIPT, JSON, _TEXT),
    _post("/images/generations", "Make an image", _IMAGES, JSON, EVENTS),
    _upload("/images/edits", "Change an image", _IMAGES, JSON, EVENTS),
    _upload("/images/variations", "Vary an image", _IMAGES, JSON),
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
