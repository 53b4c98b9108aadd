"""What the gateway may ask of the model server: a closed list of exact calls.

Pure. A call is allowed when its method and its path equal an entry of the table, byte for byte:
nothing is decoded, folded, trimmed or matched by prefix, because every such kindness has let
something through somewhere (an encoded dot segment, a doubled slash). A query is dropped, not
refused and never passed on: some clients add one that means nothing here (`?beta=true`), and
some servers switch features on by one. `/v1/*` is no safe rule, since vLLM loads LoRA
adapters under /v1, and neither is GET, since SGLang flushes its cache on a GET.

One family has a free part, `GET /v1/models/{id}`. Its id is decoded once and looked up among
the models that the agent has listed itself; it is never sent on as a path.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final
from urllib.parse import unquote

from byoai_shared.errors import ConfigError

MODEL_PREFIX: Final = "/v1/models/"
MAX_MODEL_ID: Final = 256


class Names(Enum):
    """Where a call names its model."""

    NOWHERE = "nowhere"
    JSON = "json"
    FORM = "form"


@dataclass(frozen=True, slots=True)
class Forward:
    """Pass the call on to the model server that has the model."""

    path: str
    names_model: Names


@dataclass(frozen=True, slots=True)
class ListModels:
    """Answer `GET /v1/models` with the models of every upstream."""


@dataclass(frozen=True, slots=True)
class DescribeModel:
    """Answer `GET /v1/models/{id}` from the agent's own list."""

    model: str


Decision = Forward | ListModels | DescribeModel

_DEFAULT: Final[Mapping[tuple[str, str], Names]] = {
    ("POST", "/v1/chat/completions"): Names.JSON,
    ("POST", "/v1/completions"): Names.JSON,
    ("POST", "/v1/embeddings"): Names.JSON,
    ("POST", "/v1/responses"): Names.JSON,
    ("POST", "/v1/messages"): Names.JSON,
    ("POST", "/v1/messages/count_tokens"): Names.JSON,
    ("POST", "/v1/audio/transcriptions"): Names.FORM,
    ("POST", "/v1/rerank"): Names.JSON,
}

OPTIONAL_GROUPS: Final[Mapping[str, Mapping[tuple[str, str], Names]]] = {
    "audio-translations": {("POST", "/v1/audio/translations"): Names.FORM},
    "audio-speech": {("POST", "/v1/audio/speech"): Names.JSON},
    "images": {
        ("POST", "/v1/images/generations"): Names.JSON,
        ("POST", "/v1/images/edits"): Names.FORM,
        ("POST", "/v1/images/variations"): Names.FORM,
    },
    "score": {("POST", "/v1/score"): Names.JSON},
    "classify": {("POST", "/v1/classify"): Names.JSON},
    "tokenize": {
        ("POST", "/tokenize"): Names.JSON,
        ("POST", "/detokenize"): Names.JSON,
    },
    "ollama": {
        ("POST", "/api/chat"): Names.JSON,
        ("POST", "/api/generate"): Names.JSON,
        ("POST", "/api/embed"): Names.JSON,
        ("POST", "/api/show"): Names.JSON,
        ("GET", "/api/tags"): Names.NOWHERE,
    },
}


class Policy:
    """The table of one agent: the default calls and the groups its owner turned on."""

    def __init__(self, groups: Iterable[str] = ()) -> None:
        calls = dict(_DEFAULT)
        for group in groups:
            if group not in OPTIONAL_GROUPS:
                known = ", ".join(sorted(OPTIONAL_GROUPS))
                raise ConfigError(f"policy group {group!r} does not exist; there are: {known}")
            calls.update(OPTIONAL_GROUPS[group])
        self._decisions: dict[tuple[str, str], Decision] = {
            call: Forward(path=call[1], names_model=names) for call, names in calls.items()
        }
        self._decisions["GET", "/v1/models"] = ListModels()

    def decide(self, method: str, target: str) -> Decision | None:
        """What to do with a call; None means 404, whatever the reason."""
        path, _, _ = target.partition("?")
        decision = self._decisions.get((method, path))
        if decision is None and method == "GET" and path.startswith(MODEL_PREFIX):
            return _describe(path[len(MODEL_PREFIX) :])
        return decision


def _describe(encoded: str) -> DescribeModel | None:
    """The model that a path asks for; a client may write its slashes as %2F or plainly."""
    model = unquote(encoded, errors="replace")
    if not 0 < len(model) <= MAX_MODEL_ID or not model.isprintable() or "#" in encoded:
        return None
    return DescribeModel(model)
