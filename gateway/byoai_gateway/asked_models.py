"""What model servers say of their models, asked for now and then, and kept for a moment.

A list that is being renewed is given out meanwhile, so that of many who look one waits, and none
longer than `ASK_S`. That a server gave none is kept too, for a shorter time: looking again and
again must not become asking somebody's server again and again.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from byoai_gateway.clock import Clock
from byoai_gateway.model_choice import UNKNOWN, ServerOffer
from byoai_gateway.providers.model_lists import MAX_MODELS, ListedModel, MalformedList, read_list
from byoai_gateway.request_ids import current_request_id, request_id
from byoai_gateway.router.asking import ask
from byoai_gateway.router.classify import malformed, timed_out, truncated
from byoai_gateway.router.endpoints import MODELS, PREFIX
from byoai_gateway.router.failures import AttemptFailed, Failure, FailureKind
from byoai_gateway.router.upstream import Call, Prepared, Upstream
from byoai_shared.http1.errors import BodyTooLarge, HttpError
from byoai_shared.http1.head import RequestHead

ASK_S: Final = 5.0
FRESH_S: Final = 60.0
FAILED_S: Final = 5.0
MAX_LISTS: Final = 256
MAX_ANSWER_BYTES: Final = 1024 * 1024
_LET_GO: Final = frozenset({FailureKind.UNREACHABLE, FailureKind.CONNECTION_LOST})


@dataclass(frozen=True, slots=True)
class Listed:
    """A server's list."""

    models: tuple[ListedModel, ...]
    fetched_at: float

    @property
    def names(self) -> tuple[str, ...]:
        """What to write in a request."""
        return tuple(it.id for it in self.models)

    @property
    def may_be_cut(self) -> bool:
        """Whether the server may have more models than were read."""
        return not 0 < len(self.models) < MAX_MODELS


@dataclass(slots=True)
class _Kept:
    outcome: Listed | Failure
    ask_again_at: float


class AskedModels:
    """Asks servers for their models, on behalf of whoever looks at them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, ...], _Kept] = OrderedDict()

    async def of(self, name: tuple[str, ...], upstream: Upstream) -> Listed:
        """The models of a server; what is kept is kept by `name`: who asks what with which key.

        Raises:
            AttemptFailed: they cannot be had, as was found now or a moment ago.
        """
        now = self._clock()
        kept = self._kept.get(name)
        if kept is None or now >= kept.ask_again_at:
            if kept is not None:
                kept.ask_again_at = now + ASK_S
            kept = self._keep(name, await self._ask(upstream))
        if isinstance(kept.outcome, Failure):
            raise AttemptFailed(kept.outcome)
        return kept.outcome

    def offer(self, name: tuple[str, ...]) -> ServerOffer:
        """What is known of a server's models, without asking it.

        A list that has aged rules no name out: the server may have other models since.
        """
        kept = self._kept.get(name)
        if kept is None or isinstance(kept.outcome, Failure):
            return UNKNOWN
        listed = kept.outcome
        is_fresh = self._clock() - listed.fetched_at <= FRESH_S
        return ServerOffer(listed.names, is_complete=is_fresh and not listed.may_be_cut)

    async def _ask(self, upstream: Upstream) -> Listed | Failure:
        try:
            return Listed(await ask_for_models(upstream), self._clock())
        except AttemptFailed as error:
            return error.failure

    def _keep(self, name: tuple[str, ...], outcome: Listed | Failure) -> _Kept:
        kept_s = FRESH_S if isinstance(outcome, Listed) else FAILED_S
        kept = _Kept(outcome, self._clock() + kept_s)
        self._kept[name] = kept
        self._kept.move_to_end(name)
        if len(self._kept) > MAX_LISTS:
            self._kept.popitem(last=False)
        return kept


async def ask_for_models(upstream: Upstream) -> tuple[ListedModel, ...]:
    """Ask a provider for its list of models, by the way that requests go.

    Raises:
        AttemptFailed: it cannot be had; the failure says why, as for any request.
    """
    provider = upstream.provider
    prepared = upstream.prepare(_call())
    try:
        async with asyncio.timeout(ASK_S):
            body = await _asked(upstream, prepared)
    except TimeoutError:
        raise AttemptFailed(timed_out(provider, ASK_S)) from None
    except BodyTooLarge:
        sentence = f"its list of models exceeds the limit of {MAX_ANSWER_BYTES} bytes"
        raise AttemptFailed(malformed(provider, sentence)) from None
    except HttpError as error:
        raise AttemptFailed(truncated(provider)) from error
    try:
        return read_list(body)
    except MalformedList as error:
        raise AttemptFailed(malformed(provider, str(error))) from error


async def _asked(upstream: Upstream, prepared: Prepared) -> bytes:
    while True:
        connection = await upstream.acquire()
        is_used = connection.exchanges > 0
        try:
            response = await ask(upstream, connection, prepared)
            return await response.read(MAX_ANSWER_BYTES)
        except AttemptFailed as error:
            # The server may have let go of an idle connection just now.
            if not is_used or error.failure.kind not in _LET_GO:
                raise
        finally:
            upstream.release(connection)


def _call() -> Call:
    target = PREFIX + MODELS.path
    head = RequestHead(MODELS.method, target, ((b"accept", b"application/json"),))
    own_id = request_id(current_request_id() or "")
    return Call(
        MODELS, head, b"", None, None, is_stream=False, wants_usage=False, request_id=own_id
    )
