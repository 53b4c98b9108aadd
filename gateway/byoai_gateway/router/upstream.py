"""What the router needs of a provider: one interface, whoever answers and however it is reached."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, Self

import msgspec

from byoai_gateway.router.agent_choice import Candidate
from byoai_gateway.router.endpoints import Endpoint
from byoai_gateway.router.failures import Failure
from byoai_gateway.router.keeping import Budget, Held
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.head import Headers, RequestHead
from byoai_shared.http1.incoming import IncomingBody

Fields = Mapping[str, msgspec.Raw]
"""A JSON body's top level: each value as the bytes it came in."""


OWN_BYTES: Final = 8 * 1024 * 1024
"""What may be kept of an answer to a call of our own, such as a test of a connection."""


class ProviderName(StrEnum):
    """The providers, as users choose them."""

    DEFAULT = "default"
    OPENROUTER = "openrouter"
    SELF_HOSTED = "self-hosted"


@dataclass(frozen=True, slots=True)
class Timers:
    """How long a provider may take, in seconds."""

    first_token_s: float
    """From the request, or from the provider's last sign of life, to the first content."""
    silence_s: float
    """Between two reads of a stream once it has content; comments count."""
    whole_answer_s: float
    """For an answer that is not streamed, in place of the first token."""


class Call(msgspec.Struct, frozen=True):
    """One request of a user, as far as the router reads it."""

    endpoint: Endpoint
    head: RequestHead
    body: bytes | IncomingBody
    """Whole, so that it can be sent again; or still coming, when it is too large for that."""
    fields: Fields | None
    """Of a JSON body; None for any other."""
    model: str | None
    is_stream: bool
    wants_usage: bool
    """Whether the client itself asked for a stream's usage."""
    request_id: str
    held: Held = msgspec.field(default_factory=lambda: Held(Budget(OWN_BYTES), ""))
    """What is kept of it and of its answer counts here."""
    may_add_usage: bool = True
    """Whether a stream's usage may be asked for though the client did not: not where it is refused.
    """
    form: frozenset[str] = frozenset()
    """The names of a form's fields."""


class Prepared(msgspec.Struct, frozen=True):
    """A request as a provider gets it."""

    head: RequestHead
    body: bytes | IncomingBody
    model: str | None
    """What the provider is asked for."""
    added_usage: bool = False
    """Whether it asks for a stream's usage though the client did not."""


class Upstream(Protocol):
    """One provider, ready to be asked on behalf of one user."""

    @property
    def provider(self) -> ProviderName:
        """Which one it is."""
        ...

    @property
    def server(self) -> str:
        """A name for the server that answers, by which what it cannot do is remembered."""
        ...

    @property
    def timers(self) -> Timers:
        """How long it may take."""
        ...

    def own_answer(self, call: Call) -> bytes | None:
        """Return the JSON that answers a call without asking anybody; None: ask.

        Raises:
            AttemptFailed: it is known without asking that the answer is a no.
        """
        ...

    def learn(self, call: Call) -> Awaitable[None] | None:
        """Find out what `prepare` needs to know for this call; what cannot be had is done without.

        None where what is known will do, as nearly always; else to be awaited, bounded in time.
        """
        ...

    def prepare(self, call: Call) -> Prepared:
        """Make the request anew: address, key, model; nothing that is only between us and users.

        Raises:
            AttemptFailed: the provider does not have this endpoint or model.
        """
        ...

    def candidates(self, model: str | None) -> Sequence[Candidate]:
        """Return the agents that could answer a request for a model now.

        Empty where there is nothing to choose: the provider has no agents, or only one.
        """
        ...

    def by_agent(self, agent_id: str) -> Self:
        """Return this provider as it is asked by one of its `candidates`."""
        ...

    def take_fresh(self) -> ClientConnection | None:
        """Return a connection that was in use a moment ago; None where `acquire` must wait for one.

        To be given back with `release`, as one of `acquire`.
        """
        ...

    async def acquire(self) -> ClientConnection:
        """Return a connection; to be given back with `release`, whatever became of it.

        Raises:
            AttemptFailed: there is no way to the provider now; nothing was sent.
        """
        ...

    def release(self, connection: ClientConnection) -> None:
        """Take a connection back."""
        ...

    def explain(self, status: int, headers: Headers, body: bytes) -> Failure:
        """Say what an answer that is no success means; `body` may be cut short."""
        ...

    def explain_error(self, error: msgspec.Raw) -> Failure:
        """Say what an error inside an answer of 200 means."""
        ...
