"""What a case is, what is observed of it, and what an allowed difference is."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from support.provider_script import Script, Until

EVENTS: Final = "text/event-stream"
CLIENT_READS: Final = Until(asyncio.Event())
"""A step of an answer: wait until the client has got something of it. Each request has its own."""


class OneOf:
    """Equals each of some values: which of them comes is chance."""

    def __init__(self, *values: object) -> None:
        self._values = values

    def __eq__(self, other: object) -> bool:
        return other in self._values

    def __hash__(self) -> int:
        return hash(self._values)

    def __repr__(self) -> str:
        return " or ".join(repr(it) for it in self._values)


class Naming:
    """Equals each text with a word in it."""

    def __init__(self, word: str) -> None:
        self._word = word

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self._word in other

    def __hash__(self) -> int:
        return hash(self._word)

    def __repr__(self) -> str:
        return f"a text with {self._word!r}"


class Route(StrEnum):
    """The ways from a client to a provider through the gateway."""

    DEFAULT = "default"
    OPENROUTER = "openrouter"
    TUNNEL = "tunnel"
    URL = "url"


SELF_HOSTED: Final = (Route.TUNNEL, Route.URL)
USERS_OWN: Final = (Route.OPENROUTER, *SELF_HOSTED)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a client; `path` is relative to `/v1`."""

    path: str
    body: bytes = field(default=b"", repr=False)
    method: str = "POST"
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = (("x-stainless-retry-count", "0"),)
    """The official clients announce that they retry; without this header the gateway may."""
    is_stream: bool = False
    key_header: str = "authorization"
    """Where the client says who it is; Anthropic's clients use `x-api-key`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the official `openai` client made of an answer."""

    raises: str | None
    """The class of the exception; None: there was none."""
    status: int | None = None
    code: object = None
    type: object = None
    param: object = None


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it reached the provider, without what belongs to one connection."""

    method: str
    path: str
    """Relative to the provider's base address."""
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client saw of an answer, and what the provider saw of the request."""

    status: int
    """0: the connection ended before there was a status."""
    content_type: str
    headers: Mapping[str, str]
    """Those that mean something to a client beyond this connection."""
    body: bytes
    """Up to an error; of a stream without the events that are only comments."""
    error: Mapping[str, Any] | None
    """The members of an error answer or event: `error.message`, and `request_id` beside it."""
    is_cut: bool
    """Whether the connection ended before the answer did."""
    received: tuple[Received, ...]
    outcome: Outcome | None
    """None where the official client is not asked."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request, the provider's answer byte for byte, and the differences allowed per route."""

    name: str
    ask: Ask
    answer: Script = field(repr=False)
    differs: Mapping[Route, tuple["Difference", ...]] = field(
        default_factory=dict[Route, tuple["Difference", ...]], repr=False
    )
    error: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The members of the error that the client gets, where a difference makes one."""
    answered: int = 502
    """The status of that error."""
    becomes: bytes = field(default=b"", repr=False)
    """The body that the client, or the provider, gets where a difference makes another."""
    awaited: bytes = b""
    """What the client must have got before `CLIENT_READS` goes on; nothing: a first byte."""
    refused: bytes = b""
    """A request with these bytes in its body gets `refusal` instead of the answer."""
    refusal: Script = ()
    then: Script = field(default=(), repr=False)
    """The answer to a request that is sent again; nothing: the same answer."""
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    """What the users changed in their preferences before, and change back after it."""
    listed: tuple[Route, ...] = ()
    """Where the users looked at the models of their provider before."""
    is_last: bool = False
    """Whether the gateway learns from it, so that it must come behind all others."""
    has_sdk: bool = True
    """Whether the official client can send this request and read this endpoint."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry of the allow-list: what is allowed to differ, and why a user would accept it."""

    name: str
    what: str
    why: str
    applied: Callable[[Case, Seen], Seen] = field(repr=False)
    """Makes what is expected through the gateway out of what was seen without it."""
    is_final: bool = False
    """Whether it makes an error of which it is known that the same request would meet it again."""
