"""Lists of models in OpenAI's shape: read from servers, and written for names of our own.

Pure. Reading is lenient: an entry that cannot be read, or named in a request, is left out. What a
server says besides the name and the context's length is not looked at.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from byoai_shared.errors import ByoaiError
from byoai_shared.lone_surrogates import decode

MAX_MODELS: Final = 1000
_MAX_NAME: Final = 200
_MOST_TOKENS: Final = 2**53 - 1
"""What any reader of JSON can read again."""
_OWNER: Final = "default"


class MalformedList(ByoaiError):
    """An answer is no list of models; the sentence does not quote it."""


class ListedModel(msgspec.Struct, frozen=True):
    """A model that a server lists."""

    id: str
    context_length: int | None = None
    """In tokens."""


class _Answer(msgspec.Struct):
    data: list[msgspec.Raw] | None
    """Ollama writes null when it has none."""


class _Entry(msgspec.Struct):
    id: str
    max_model_len: object = None
    """vLLM's and SGLang's."""
    context_length: object = None
    """Of several hosted services."""


class _Card(msgspec.Struct, frozen=True):
    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = _OWNER


class _Cards(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: tuple[_Card, ...]


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_ENTRY: Final = msgspec.json.Decoder(_Entry)


def read_list(body: bytes) -> tuple[ListedModel, ...]:
    """Read the answer of `GET /models`, each name once, at most `MAX_MODELS` of them.

    Raises:
        MalformedList: it is something else.
    """
    try:
        entries = decode(_ANSWER, body).data or ()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MalformedList("it is not a list of models") from None
    found: dict[str, ListedModel] = {}
    for raw in entries:
        model = _model(raw)
        if model is not None:
            found.setdefault(model.id, model)
        if len(found) == MAX_MODELS:
            break
    return tuple(found.values())


def list_body(names: Iterable[str]) -> bytes:
    """Write a list of models that are known by these names."""
    return msgspec.json.encode(_Cards(data=tuple(_Card(name) for name in names)))


def card_body(name: str) -> bytes:
    """Write what is shown of one model."""
    return msgspec.json.encode(_Card(name))


def _model(raw: msgspec.Raw) -> ListedModel | None:
    try:
        entry = _ENTRY.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not entry.id or len(entry.id) > _MAX_NAME or not entry.id.isprintable():
        return None
    length = _length(entry.max_model_len) or _length(entry.context_length)
    return ListedModel(entry.id, length)


def _length(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 < value <= _MOST_TOKENS else None
