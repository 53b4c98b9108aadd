"""Which model a name in a request means."""

from typing import Final

import pytest

from byoai_gateway.model_choice import (
    UNKNOWN,
    Asked,
    AskFor,
    LeaveOut,
    ModelPreference,
    NotOffered,
    Offer,
    Outcome,
    ServerOffer,
    asked_by,
    choose,
    listed_as,
    needs_list,
)
from byoai_gateway.providers.openrouter_names import OpenRouterOffer
from byoai_gateway.router.endpoints import ENDPOINTS
from byoai_shared.model_skills import Skill

NAMES: Final = ("nomic-embed-text", "llama3.2:3b", "qwen3:latest", "bge-reranker-v2")
LISTED: Final = ServerOffer(NAMES, is_complete=True, stand_in="registered")
CUT: Final = ServerOffer(NAMES, is_complete=False, stand_in="registered")
SILENT: Final = ServerOffer(stand_in="registered")
"""An agent that reports nothing."""
OPERATORS: Final = frozenset({"small", "large"})
NONE: Final = ModelPreference(operators=OPERATORS)
QWEN: Final = ModelPreference("qwen3", operators=OPERATORS)
GONE: Final = ModelPreference("gone", operators=OPERATORS)
ALWAYS: Final = ModelPreference("qwen3", always_answers=True, operators=OPERATORS)
ALWAYS_FIRST: Final = ModelPreference(always_answers=True, operators=OPERATORS)


def text(name: str | None) -> Asked:
    return Asked(name, Skill.TEXT)


def embeddings(name: str | None) -> Asked:
    return Asked(name, Skill.EMBEDDINGS)


def form(name: str | None) -> Asked:
    return Asked(name, Skill.AUDIO, is_fixed=True)


def refused(name: str) -> NotOffered:
    return NotOffered(name, NAMES)


SERVERS: Final[list[tuple[Asked, ModelPreference, Offer, Outcome]]] = [
    # A name that is offered is passed on as it was written.
    (text("llama3.2:3b"), NONE, LISTED, AskFor("llama3.2:3b")),
    (text("llama3.2:3b"), QWEN, LISTED, AskFor("llama3.2:3b")),
    (text("qwen3"), NONE, LISTED, AskFor("qwen3")),
    (text("qwen3:latest"), NONE, LISTED, AskFor("qwen3:latest")),
    (text("nomic-embed-text"), NONE, LISTED, AskFor("nomic-embed-text")),
    # No name, `default` and the operator's own names mean the preferred model.
    *((text(it), QWEN, LISTED, AskFor("qwen3")) for it in (None, "", "default", "small")),
    *((text(it), GONE, LISTED, refused("gone")) for it in (None, "default", "large")),
    # Without one, the first that can do what the endpoint needs.
    *((text(it), NONE, LISTED, AskFor("llama3.2:3b")) for it in (None, "", "default", "small")),
    (embeddings(None), NONE, LISTED, AskFor("nomic-embed-text")),
    (embeddings(None), QWEN, LISTED, AskFor("nomic-embed-text")),
    (Asked(None, Skill.RERANKING), NONE, LISTED, AskFor("bge-reranker-v2")),
    (Asked(None, Skill.AUDIO), NONE, LISTED, AskFor("nomic-embed-text")),
    (Asked(None, None), NONE, LISTED, AskFor("nomic-embed-text")),
    (Asked(None, Skill.IMAGES), QWEN, LISTED, AskFor("qwen3")),
    # The name that a tunnel was registered with, if it is there.
    (text(None), NONE, ServerOffer(("a", "b"), True, "b"), AskFor("b")),
    (text(None), NONE, ServerOffer(("a", "b:latest"), True, "b"), AskFor("b:latest")),
    (embeddings(None), NONE, ServerOffer(("a", "embed"), True, "a"), AskFor("embed")),
    # Any other name is refused with those that are offered.
    (text("gpt-4o"), NONE, LISTED, refused("gpt-4o")),
    (text("gpt-4o"), QWEN, LISTED, refused("gpt-4o")),
    (text("llama3.2"), NONE, LISTED, refused("llama3.2")),
    # Unless the user's model always answers.
    *((text(it), ALWAYS, LISTED, AskFor("qwen3")) for it in ("gpt-4o", "llama3.2:3b", "small")),
    (text("gpt-4o"), ALWAYS_FIRST, LISTED, AskFor("llama3.2:3b")),
    (text("qwen3"), ALWAYS_FIRST, LISTED, AskFor("qwen3")),
    (embeddings("nomic-embed-text"), ALWAYS, LISTED, AskFor("nomic-embed-text")),
    (embeddings("text-embedding-3-small"), ALWAYS, LISTED, AskFor("nomic-embed-text")),
    # A list that may be cut rules nothing out.
    (text("gpt-4o"), NONE, CUT, AskFor("gpt-4o")),
    (text("small"), NONE, CUT, AskFor("llama3.2:3b")),
    (text(None), GONE, CUT, AskFor("gone")),
    (text("gpt-4o"), ALWAYS, CUT, AskFor("qwen3")),
    # An agent that reports nothing.
    (text("gpt-4o"), NONE, SILENT, AskFor("gpt-4o")),
    (text(None), NONE, SILENT, AskFor("registered")),
    (text("small"), NONE, SILENT, AskFor("registered")),
    (text(None), QWEN, SILENT, AskFor("qwen3")),
    (embeddings(None), NONE, SILENT, AskFor("registered")),
    # A server whose list is not known.
    (text("gpt-4o"), NONE, UNKNOWN, AskFor("gpt-4o")),
    (text(None), NONE, UNKNOWN, LeaveOut()),
    (text("small"), NONE, UNKNOWN, LeaveOut()),
    (text("small"), QWEN, UNKNOWN, AskFor("qwen3")),
    (text("gpt-4o"), ALWAYS_FIRST, UNKNOWN, LeaveOut()),
    # A form is not rewritten.
    (form(None), QWEN, LISTED, LeaveOut()),
    (form("qwen3"), QWEN, LISTED, AskFor("qwen3")),
    (form("whisper-1"), NONE, LISTED, refused("whisper-1")),
    (form("default"), ALWAYS, LISTED, refused("default")),
    (form("small"), QWEN, LISTED, refused("small")),
    (form("whisper-1"), NONE, CUT, AskFor("whisper-1")),
    (form("whisper-1"), NONE, UNKNOWN, AskFor("whisper-1")),
]


@pytest.mark.parametrize(("asked", "preference", "offer", "outcome"), SERVERS)
def test_the_rule_at_a_users_server(
    asked: Asked, preference: ModelPreference, offer: Offer, outcome: Outcome
) -> None:
    assert choose(asked, preference, offer) == outcome


@pytest.mark.parametrize(
    ("asked", "preference", "is_needed"),
    [
        (text(None), NONE, True),
        (text("small"), NONE, True),
        (text("small"), QWEN, False),
        (text("gpt-4o"), QWEN, False),
        (embeddings(None), QWEN, True),
        (embeddings("small"), QWEN, True),
        (embeddings("qwen3"), QWEN, False),
        (embeddings("gpt-4o"), QWEN, False),
        (Asked(None, None), QWEN, False),
        (form("small"), QWEN, False),
    ],
)
def test_the_list_is_needed_where_no_preferred_model_can_do_it(
    asked: Asked, preference: ModelPreference, *, is_needed: bool
) -> None:
    assert needs_list(asked, preference) is is_needed


KNOWN: Final = OpenRouterOffer(("acme/small", "acme/large:free"), is_complete=True)
AGED: Final = OpenRouterOffer(("acme/small",), is_complete=False)
UNHEARD: Final = OpenRouterOffer()
ACME: Final = ModelPreference("acme/pro", operators=OPERATORS)
ANY: Final = OpenRouterOffer(takes_any=True)


@pytest.mark.parametrize(
    ("asked", "preference", "offer", "outcome"),
    [
        (text("acme/small"), ACME, KNOWN, AskFor("acme/small")),
        (text("acme/small:nitro"), ACME, KNOWN, AskFor("acme/small:nitro")),
        (text("acme/small@preset/mine"), ACME, KNOWN, AskFor("acme/small@preset/mine")),
        (text("@preset/mine"), ACME, KNOWN, AskFor("@preset/mine")),
        (text("~acme/latest"), ACME, KNOWN, AskFor("~acme/latest")),
        (text("acme/large:free"), ACME, KNOWN, AskFor("acme/large:free")),
        (text("acme/large"), ACME, KNOWN, NotOffered("acme/large", KNOWN.names)),
        (text("gpt-4o"), ACME, KNOWN, NotOffered("gpt-4o", KNOWN.names)),
        # Its own refusal shows a preference that it does not have: its list is not all it has.
        *((text(it), ACME, KNOWN, AskFor("acme/pro")) for it in (None, "default", "small")),
        *((text(it), NONE, KNOWN, LeaveOut()) for it in (None, "", "default", "small")),
        (text("acme/new"), ACME, AGED, AskFor("acme/new")),
        (text("acme/new"), ACME, UNHEARD, AskFor("acme/new")),
        (text("acme/new:free"), NONE, UNHEARD, AskFor("acme/new:free")),
        (text("gpt-4o"), ACME, UNHEARD, AskFor("acme/pro")),
        (text("gpt-4o"), NONE, UNHEARD, LeaveOut()),
        (text("acme/"), ACME, UNHEARD, AskFor("acme/pro")),
        (text("acme/small"), ModelPreference("a/b", True), KNOWN, AskFor("a/b")),
        (text("acme/small"), ModelPreference(None, True), KNOWN, AskFor("acme/small")),
        (embeddings(None), ACME, ANY, LeaveOut()),
        (embeddings("small"), ACME, ANY, LeaveOut()),
        (embeddings("text-embedding-3-small"), ACME, ANY, AskFor("text-embedding-3-small")),
        (embeddings(None), ModelPreference("acme/embed"), ANY, AskFor("acme/embed")),
    ],
)
def test_the_rule_at_openrouter(
    asked: Asked, preference: ModelPreference, offer: Offer, outcome: Outcome
) -> None:
    assert choose(asked, preference, offer) == outcome


def test_what_each_endpoint_needs() -> None:
    found = {it.path: asked_by(it, "m") for it in ENDPOINTS}
    assert {path: it.skill for path, it in found.items()} == {
        "/models": None,
        "/models/{model}": None,
        "/chat/completions": Skill.TEXT,
        "/completions": Skill.TEXT,
        "/embeddings": Skill.EMBEDDINGS,
        "/responses": Skill.TEXT,
        "/messages": Skill.TEXT,
        "/messages/count_tokens": Skill.TEXT,
        "/rerank": Skill.RERANKING,
        "/score": Skill.RERANKING,
        "/classify": None,
        "/audio/speech": Skill.AUDIO,
        "/audio/transcriptions": Skill.AUDIO,
        "/audio/translations": Skill.AUDIO,
        "/images/generations": Skill.IMAGES,
        "/images/edits": Skill.IMAGES,
        "/images/variations": Skill.IMAGES,
    }
    assert {path for path, it in found.items() if it.is_fixed} == {
        "/audio/transcriptions",
        "/audio/translations",
        "/images/edits",
        "/images/variations",
    }


def test_ollama_needs_no_latest() -> None:
    assert listed_as("qwen3", NAMES) == "qwen3:latest"
    assert listed_as("qwen3:latest", NAMES) == "qwen3:latest"
    assert listed_as("qwen", NAMES) is None
    assert listed_as(None, NAMES) is None
