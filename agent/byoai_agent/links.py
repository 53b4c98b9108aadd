"""Keeps links to relays: two where there are two relays, each kept by its own slot.

A slot chooses a relay, connects, presents the token, serves, and starts again when the link is
over. Three things make it open a new link before the old one is let go, so that no request is
lost: the relay says GOAWAY, the certificate was renewed, the relay left the list. Whether a
refusal is final is not for a relay to say (it could be wrong, or hostile): the gateway is
asked, and its word ends the agent.
"""

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from hashlib import sha256
from typing import Any, Final, assert_never

from byoai_agent import __version__
from byoai_agent.credentials import Credentials
from byoai_agent.proxies import proxy_for
from byoai_agent.reporter import Reporter
from byoai_agent.state import KeyPair
from byoai_agent.streams import LinkStreams
from byoai_agent.words import in_words
from byoai_shared.backoff import Backoff
from byoai_shared.errors import ByoaiError
from byoai_shared.link.errors import LinkError, LinkLost, LinkRefused, TokenNotRenewed
from byoai_shared.link.session import LinkSession, connect
from byoai_shared.protocol.control import Hello, Role, Status
from byoai_shared.protocol.errors import CloseCode
from byoai_shared.secret import Secret
from byoai_shared.tls import Credentials as TlsCredentials
from byoai_shared.tls import client_context

MAX_LINKS: Final = 2
DRAIN_S: Final = 600.0
STATUS_EVERY_S: Final = 30.0
STATUS_REST_S: Final = 5.0
_AVOID_S: Final = 30.0
_HURRY_S: Final = 1.0
# To dial an address where nothing listens is cheap: a relay or network that returns is found soon.
_ABSENT_CAP_S: Final = 5.0
_NOT_READY_CAP_S: Final = 10.0
_CAP_S: Final = 30.0
MAX_RETRY_AFTER_S: Final = 300.0
# Of two hosts with the same state each cuts the other off: seldom, and after the gateway was asked.
_SHARED_REST_S: Final = 30.0
_ASK_WHO_AFTER_S: Final = 4.0
# A relay that drains is asked this seldom at the latest whether it takes links again.
_LOOK_AGAIN_S: Final = 15.0
# What a relay closes a link with when it does not believe us; the gateway then decides.
_DISBELIEF: Final = frozenset({CloseCode.TOKEN_EXPIRED, CloseCode.TOKEN_REFUSED, CloseCode.REVOKED})
_HOPELESS: Final = frozenset({CloseCode.UNSUPPORTED_VERSION, CloseCode.WRONG_ROLE})


class _Wake(Enum):
    """What ends the wait for the next try early."""

    NOTHING = auto()
    CERTIFICATE = auto()
    """A renewed certificate, once; no token, or each refusal would bring the next try."""
    NEWS = auto()
    """Any sign that the next try may succeed."""


class AgentOutdated(ByoaiError):
    """The relays speak no version of the link protocol that this agent speaks."""

    is_fatal = True


@dataclass(slots=True, eq=False)
class OpenLink:
    """A link that stands, and what runs on it."""

    relay: str
    session: LinkSession
    streams: LinkStreams
    pair: KeyPair
    token: Secret
    """The pair and the token that it was opened with."""
    opened_at: float
    """By the monotonic clock."""


@dataclass(slots=True, eq=False)
class Slot:
    """One of the places for a link, and what it is doing now."""

    backoff: Backoff
    relay: str = ""
    link: OpenLink | None = None
    fault: str = ""
    retry_at: float | None = None
    """Unix seconds of the next try."""
    renew: asyncio.Event = field(default_factory=asyncio.Event)
    """A new link is wanted because the certificate is new."""

    @property
    def is_up(self) -> bool:
        """Whether streams may come by it."""
        return self.link is not None and not self.link.session.closed.done()


class Links:
    """The links of one agent."""

    def __init__(
        self,
        credentials: Credentials,
        reporter: Reporter,
        *,
        new_streams: Callable[[], LinkStreams],
        status: Callable[[], Status],
        max_streams: int,
        on_change: Callable[[], None] = lambda: None,
        dial: Callable[..., Awaitable[LinkSession]] = connect,
        rng: random.Random | None = None,
    ) -> None:
        self._credentials = credentials
        self._reporter = reporter
        self._new_streams = new_streams
        self._status = status
        self._max_streams = max_streams
        self._on_change = on_change
        self._dial = dial
        self._rng = rng or random.SystemRandom()
        self._epoch = 0
        self._was_ready = False
        self._avoided: dict[str, float] = {}
        self._relays_changed = asyncio.Event()
        self._status_changed = asyncio.Event()
        self._alone = asyncio.Event()
        self._retiring: set[OpenLink] = set()
        self._group: asyncio.TaskGroup | None = None
        self.slots = [Slot(Backoff(cap_s=_CAP_S)) for _ in range(MAX_LINKS)]
        credentials.listeners.token = self._present_token
        credentials.listeners.certificate = self._replace_links

    async def run(self) -> None:
        """Keep the links; returns never.

        Raises:
            AgentOutdated: no relay will ever take this agent.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            for slot in self.slots:
                group.create_task(self._keep(slot))
            group.create_task(self._tell_status())

    def relays_changed(self) -> None:
        """The gateway named other relays."""
        self._relays_changed.set()
        self._relays_changed = asyncio.Event()

    def status_changed(self) -> None:
        """Something that STATUS says is different now."""
        self._status_changed.set()

    async def drain(self, timeout_s: float) -> None:
        """Take no new streams, let running answers finish, close; after `run` has ended."""
        links = self._all()
        for link in links:
            link.streams.drain()
        await asyncio.gather(*(link.session.drain(timeout_s) for link in links))

    def abort(self) -> None:
        """Cut every link that still stands."""
        for link in self._all():
            link.session.abort()

    def _all(self) -> list[OpenLink]:
        return [*(slot.link for slot in self.slots if slot.link is not None), *self._retiring]

    # -- one slot

    async def _keep(self, slot: Slot) -> None:
        while True:
            slot.relay = await self._choose(slot)
            slot.renew.clear()  # before the dial: a certificate renewed during it is wanted too
            try:
                link = await self._open(slot.relay)
            except ByoaiError as error:
                await self._failed(slot, error)
                continue
            slot.backoff.opened(time.monotonic())
            slot.fault, slot.retry_at = "", None
            former, slot.link = slot.link, link
            self._present_newer_token(link)
            self._reporter.connected(slot.relay)
            if not self._was_ready:
                self._was_ready = True
                self._reporter.ready()
            self._wake_resting()
            self._on_change()
            if former is not None:
                self._retire(former)
            await self._serve(slot, link)
            self._on_change()

    async def _choose(self, slot: Slot) -> str:
        """A relay that no other slot uses; one that is to be avoided only at need."""
        while True:
            changed = self._relays_changed
            if slot.renew.is_set() and slot.relay in self._credentials.membership.relays:
                return slot.relay
            used = {one.relay for one in self.slots if one is not slot}
            free = [one for one in self._credentials.membership.relays if one not in used]
            if free:
                now = time.monotonic()
                rested = [one for one in free if self._avoided.get(one, 0.0) <= now]
                return preferred_relay(rested or free, self._credentials.membership.agent_id)
            slot.relay = ""
            await changed.wait()

    async def _open(self, relay: str) -> OpenLink:
        credentials = self._credentials
        # Taken together: a token is bound to its certificate, and both change while we dial.
        pair, token = credentials.link, credentials.token
        context = client_context(
            server_ca_pem=credentials.membership.services_ca_pem.encode(),
            credentials=TlsCredentials(pair.certificate_pem, pair.key_pem),
        )
        self._epoch += 1
        streams = self._new_streams()
        session = await self._dial(
            relay,
            ssl_context=context,
            hello=self._hello(),
            accept=streams.accept,
            proxy=proxy_for(relay),
        )
        try:
            await session.authenticate(token.reveal())
            session.send_status(self._status())
        except BaseException:
            session.abort()
            raise
        return OpenLink(relay, session, streams, pair, token, time.monotonic())

    def _hello(self) -> Hello:
        return Hello(
            role=Role.AGENT,
            node=self._credentials.membership.agent_id,
            instance=self._credentials.instance,
            epoch=self._epoch,
            max_streams=self._max_streams,
            software=f"byoai-agent/{__version__}",
        )

    async def _serve(self, slot: Slot, link: OpenLink) -> None:
        """Return when a new link is wanted; the old one may still stand."""
        session = link.session
        renew = asyncio.ensure_future(slot.renew.wait())
        try:
            await asyncio.wait(
                (session.closed, session.goaway, session.aged, renew),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            renew.cancel()
        if session.closed.done():
            slot.link = None
            await self._lost(slot, link, session.closed.result())
        elif session.goaway.done():
            slot.backoff.lost(time.monotonic())
            goaway = session.goaway.result()
            self._reporter.moving(link.relay, goaway.reason)
            rest_s = max(_AVOID_S, goaway.retry_after_ms / 1000)
            self._avoided[link.relay] = time.monotonic() + rest_s
        elif session.aged.done():
            slot.renew.set()  # at the same relay, which may have a new certificate by now

    async def _lost(self, slot: Slot, link: OpenLink, lost: LinkLost) -> None:
        now = time.monotonic()
        slot.backoff.lost(now)
        slot.fault = str(lost)
        if lost.code is CloseCode.REPLACED:
            # Another run of this agent, and none on this host: ask the gateway which host that is.
            self._credentials.want_token(_ASK_WHO_AFTER_S)
            delay_s = self._rng.uniform(_SHARED_REST_S / 2, _SHARED_REST_S)
        else:
            if now - link.opened_at < _AVOID_S:
                # It took the link and did not keep it: the next choice is another relay.
                self._avoided[link.relay] = now + _AVOID_S
            if not any(one.is_up for one in self.slots):
                self._wake_resting()
            self._ask_gateway_if_disbelieved(lost.code)
            delay_s = self._at_least(slot.backoff.next_delay_s(), lost.retry_after_s)
        self._reporter.lost(slot.relay, str(lost), delay_s)
        await self._rest(slot, delay_s, _wake_after(lost))

    async def _failed(self, slot: Slot, error: ByoaiError) -> None:
        code = error.code if isinstance(error, LinkRefused | LinkLost) else None
        asked_s = error.retry_after_s if isinstance(error, LinkRefused | LinkLost) else None
        self._require_hope(slot, code)
        self._ask_gateway_if_disbelieved(code)
        slot.fault = link_failure(slot.relay, error)
        if isinstance(error, LinkRefused) and error.is_over_certificate:
            self._credentials.want_token()
            self._reporter.certificate_refused(slot.relay)
        self._avoided[slot.relay] = time.monotonic() + max(_AVOID_S, asked_s or 0.0)
        if code is CloseCode.GOING_AWAY and slot.is_up:
            # The old link still stands while its relay drains: no failure to be counted.
            delay_s = self._rng.uniform(_LOOK_AGAIN_S / 2, _LOOK_AGAIN_S)
        else:
            delay_s = self._at_least(slot.backoff.next_delay_s(_cap_s(error, code)), asked_s)
        self._reporter.unreachable(slot.relay, slot.fault, delay_s)
        await self._rest(slot, delay_s, _wake_after(error))

    def _at_least(self, delay_s: float, asked_s: float | None) -> float:
        """Stay away for as long as a relay asks, and not all agents exactly as long."""
        if asked_s is None:
            return delay_s
        least_s = min(asked_s, MAX_RETRY_AFTER_S)
        return max(delay_s, self._rng.uniform(least_s, least_s * 1.25))

    async def _rest(self, slot: Slot, delay_s: float, wake: _Wake) -> None:
        """Wait for the next try; `wake` says what makes the wait shorter."""
        slot.retry_at = time.time() + delay_s
        self._on_change()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                match wake:
                    case _Wake.NOTHING:
                        await asyncio.sleep(delay_s)
                    case _Wake.CERTIFICATE:
                        await slot.renew.wait()
                    case _Wake.NEWS:
                        await self._hurried(slot)
                    case _:
                        assert_never(wake)
                await asyncio.sleep(self._rng.uniform(0.0, _HURRY_S))

    async def _hurried(self, slot: Slot) -> None:
        """Return when the next try may succeed.

        This agent has lost its last link, or this slot the one that it left; or another link or
        the gateway was reached, so the network may be back.
        """
        alone = asyncio.ensure_future(self._alone.wait())
        ends: list[asyncio.Future[Any]] = [alone]
        if slot.link is not None and slot.is_up:
            ends.append(slot.link.session.closed)
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            alone.cancel()

    def _wake_resting(self) -> None:
        """Let slots that rest look again: nothing else is left, or the network is back."""
        alone, self._alone = self._alone, asyncio.Event()
        alone.set()

    def _require_hope(self, slot: Slot, code: CloseCode | None) -> None:
        """Give up only when no other link stands: a single odd relay ends nothing."""
        if code is None or code not in _HOPELESS:
            return
        if not any(one.is_up for one in self.slots):
            raise AgentOutdated(
                f"the relay {slot.relay} does not take this agent ({code.name.lower()}); "
                "update it: pip install --upgrade byoai-agent"
            )

    def _ask_gateway_if_disbelieved(self, code: CloseCode | None) -> None:
        if code in _DISBELIEF:
            self._credentials.want_token()

    # -- what changes on standing links

    def _present_token(self) -> None:
        self._wake_resting()
        for slot in self.slots:
            if slot.link is not None and slot.link.session.is_usable:
                self._spawn(self._authenticate(slot.link))

    def _present_newer_token(self, link: OpenLink) -> None:
        """Present a token that came while the link was dialled, unless it needs a newer link."""
        credentials = self._credentials
        if credentials.token is not link.token and credentials.link is link.pair:
            self._spawn(self._authenticate(link))

    async def _authenticate(self, link: OpenLink) -> None:
        try:
            await link.session.authenticate(self._credentials.token.reveal())
        except TokenNotRenewed as refused:
            self._reporter.token_not_renewed(link.relay, refused.reason)
        except LinkError:
            return  # the slot sees the link's end itself

    def _replace_links(self) -> None:
        self._wake_resting()
        for slot in self.slots:
            slot.renew.set()

    def _retire(self, link: OpenLink) -> None:
        if not link.session.closed.done():
            self._retiring.add(link)
            self._spawn(self._finish(link))

    async def _finish(self, link: OpenLink) -> None:
        link.streams.drain()
        await link.session.drain(DRAIN_S)
        self._retiring.discard(link)  # not when cancelled: `drain` then sees to it

    async def _tell_status(self) -> None:
        """On a change at once, but seldom enough for a relay with thousands of agents."""
        while True:
            try:
                async with asyncio.timeout(STATUS_EVERY_S):
                    await self._status_changed.wait()
            except TimeoutError:
                pass
            self._status_changed.clear()
            for slot in self.slots:
                if slot.link is not None and slot.link.session.is_usable:
                    slot.link.session.send_status(self._status())
            await asyncio.sleep(STATUS_REST_S)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        if self._group is None:
            raise RuntimeError("links are not kept yet")
        self._group.create_task(work)


def preferred_relay(relays: Sequence[str], agent_id: str) -> str:
    """Return an agent's own choice among relays, whatever their order.

    Each agent prefers other ones, so that agents spread, and where a relay is missing they spread
    over the rest (rendezvous hashing). Two hosts with the same state prefer the same relays: there
    each cuts the other off, and so they learn of each other.
    """
    return max(relays, key=lambda relay: sha256(f"{agent_id} {relay}".encode()).digest())


def _cap_s(error: ByoaiError, code: CloseCode | None) -> float:
    """The longest wait after a failure: the cheaper the next try is for the relay, the shorter."""
    if _is_absent(error):
        return _ABSENT_CAP_S
    return _NOT_READY_CAP_S if code is CloseCode.NOT_READY else _CAP_S


def _wake_after(error: ByoaiError) -> _Wake:
    """What may shorten the wait after a link failed or was lost.

    A relay that does not believe us makes us ask the gateway for a token. Were that token to end
    the wait, a relay with a wrong clock would be dialled again at once, and so on.
    """
    if not isinstance(error, LinkRefused | LinkLost):
        return _Wake.NEWS
    if error.retry_after_s is not None or error.code is CloseCode.REPLACED:
        return _Wake.NOTHING
    is_over_certificate = isinstance(error, LinkRefused) and error.is_over_certificate
    is_disbelieved = error.code in _DISBELIEF or is_over_certificate
    return _Wake.CERTIFICATE if is_disbelieved else _Wake.NEWS


def _is_absent(error: ByoaiError) -> bool:
    """Whether nothing took the connection; one that is cut at once comes from a relay that does."""
    cause = error.__cause__
    return isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError | ConnectionResetError)


def link_failure(relay: str, error: ByoaiError) -> str:
    """Why a link could not be made, in plain words where the network was the reason."""
    if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, ssl.SSLError):
        return f"the relay {relay} cannot be reached: {in_words(error.__cause__)}"
    return str(error)
