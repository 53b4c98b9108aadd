"""The agent's credentials, kept fresh: the tunnel token, the link certificate, the keys.

A token lives in memory only. A certificate is renewed with a new key each time, and the new
key is on disk before it is offered: if the gateway's answer is lost, it may have taken the
new key all the same, and an agent that then came back with the old one would look like a
clone. So the next attempt offers that very key again.

While the disk takes no new key, the renewal waits: a certificate is renewed long before it ends.
Only a running agent whose certificate is about to end renews with a key that is in memory alone.
"""

import asyncio
import platform
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from byoai_agent.control import RENEW, TOKEN, Gateway, GatewayError, GatewayRefused
from byoai_agent.reporter import Reporter
from byoai_agent.schedule import (
    Deadline,
    certificate_renewal_after_s,
    read_clocks,
    token_refresh_after_s,
)
from byoai_agent.state import KeyPair, Membership, StateDirectory, StateError
from byoai_agent.state_keeper import StateKeeper
from byoai_shared.assertion import sign_assertion
from byoai_shared.backoff import Backoff
from byoai_shared.enrolment import (
    OtherHost,
    RenewRequest,
    RenewResponse,
    TokenRequest,
    TokenResponse,
)
from byoai_shared.identity import AgentIdentity, new_tunnel_id, tunnel_hostname
from byoai_shared.keys import key_from_pem, key_to_pem, make_csr, new_key, self_signed_certificate
from byoai_shared.secret import Secret

_Answer = TypeVar("_Answer", TokenResponse, RenewResponse)
END_TO_END_LIFE: Final = timedelta(days=365)
# A sleeping host's monotonic clock stands still: look at both clocks this often.
_LOOK_S: Final = 15.0
_TOLERATED_SKEW_S: Final = 20.0
# A renewal whose key cannot be saved is tried again this often, and postponed until this share
# of the certificate's life is left.
_SAVE_AGAIN_S: Final = 60.0
_LAST_SHARE: Final = 1 / 12
# To ask a gateway that is away, or fails, costs it little: one that returns is found soon.
_UNREACHABLE_CAP_S: Final = 10.0
MAX_RETRY_AFTER_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Offer:
    """The keys of a renewal that the gateway may have taken."""

    key: ec.EllipticCurvePrivateKey
    end_to_end: KeyPair | None
    is_saved: bool


@dataclass(slots=True)
class Listeners:
    """Who wants to know what changed; called in the event loop, must not block."""

    token: Callable[[], None] = lambda: None
    certificate: Callable[[], None] = lambda: None
    told: Callable[[], None] = lambda: None
    """Relays, CA bundle or authentication keys may be new."""


class Credentials:
    """What one agent proves itself with. `start` once, then `run`."""

    def __init__(
        self,
        state: StateDirectory,
        gateway: Gateway,
        reporter: Reporter,
        *,
        keeper: StateKeeper | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._state = state
        self._keeper = keeper or StateKeeper(state, reporter)
        self._offer: _Offer | None = None
        self._is_postponed = False
        self._gateway = gateway
        self._reporter = reporter
        self._rng = rng or random.SystemRandom()
        self._clock_offset_s = 0.0
        self._token_due = self._certificate_due = Deadline(read_clocks(), 0.0)
        self._wanted = asyncio.Event()
        self.membership: Membership = state.membership()
        self.link: KeyPair = state.link()
        self.end_to_end: KeyPair = state.end_to_end()
        if state.next_key() == self.link.key_pem:
            state.discard_next_key()  # taken over, and then the host went down
        self.token = Secret("")
        self.token_expires_at = 0
        self.authentication_keys: tuple[Secret, ...] = ()
        self.listeners = Listeners()
        self.instance = new_tunnel_id()
        """This run of the program, for the gateway and the relays; no secret."""
        self._hostname = platform.node()[:255]
        self.other_host: OtherHost | None = None
        """A host that uses this agent's identity as well, by the gateway's last word."""
        self.refusal = ""
        """What the gateway refused the last call with; empty once it answers one."""

    async def start(self) -> None:
        """Get the first token of this run, or ask again for a renewal whose answer was lost.

        A certificate that is due is renewed by `run`, after the token: the gateway refuses a token
        to state that was restored from an old backup, and locks the agent at a renewal.

        Raises:
            GatewayError: it was not to be had; `is_fatal` says whether to try again.
            StateError: the certificate has expired, and the key of a new one cannot be saved.
        """
        self._offer = self._offer or self._offer_on_disk()
        life_s, _ = self._certificate_age()
        if self._offer:
            try:
                await self._renew()
            except StateError as error:
                self._postpone(error)
            else:
                return
        try:
            await self._refresh_token()
        except GatewayRefused as refused:
            if refused.code != "certificate_expired":
                raise
            await self._renew()
        else:
            if not self._is_postponed:
                self._certificate_due = Deadline(
                    read_clocks(), certificate_renewal_after_s(life_s, self._certificate_age()[1])
                )

    async def run(self) -> None:
        """Refresh and renew on time; returns never.

        Raises:
            GatewayRefused: the agent may not go on; only if `is_fatal`.
        """
        backoff = Backoff(base_s=1.0, cap_s=60.0)
        while True:
            await self._wait(min(self._token_due_s(), self._certificate_due_s()))
            try:
                if self._certificate_due_s() <= 0.0:
                    await self._renew_or_postpone()
                elif self._token_due_s() <= 0.0:
                    await self._refresh_token()
            except GatewayError as error:
                if error.is_fatal:
                    raise
                self._renew_if_expired(error)
                delay_s = retry_delay_s(backoff, error)
                self._reporter.renewal_failed(error, delay_s)
                await asyncio.sleep(delay_s)
            else:
                backoff = Backoff(base_s=1.0, cap_s=60.0)

    def _renew_if_expired(self, error: GatewayError) -> None:
        """Believe the gateway's clock, not ours, that the certificate is over."""
        if isinstance(error, GatewayRefused) and error.code == "certificate_expired":
            self._certificate_due = Deadline(read_clocks(), 0.0)

    def want_token(self, after_s: float = 0.0) -> None:
        """Get a new token now, or a little later: a relay did not take the one we have."""
        if after_s < self._token_due_s():
            self._token_due = Deadline(read_clocks(), after_s)
        self._wanted.set()

    def identity(self) -> AgentIdentity:
        """Who this agent is."""
        return AgentIdentity(self.membership.tunnel_id, self.membership.agent_id)

    def certificate_expires_at(self) -> datetime:
        """The end of the link certificate."""
        return _leaf(self.link.certificate_pem).not_valid_after_utc

    # -- the two calls

    async def _refresh_token(self) -> None:
        key = key_from_pem(self.link.key_pem)
        answer = await self._asserting(
            lambda: self._gateway.token(
                TokenRequest(
                    assertion=self._assertion(key, TOKEN),
                    instance=self.instance,
                    hostname=self._hostname,
                )
            )
        )
        self._hear_of(answer.other_host)
        self.authentication_keys = tuple(Secret(key) for key in answer.authentication_keys)
        self._take_token(answer)
        changed = self._remember(relays=tuple(answer.relays))
        self._reporter.token_refreshed()
        self.listeners.told()
        self.listeners.token()
        if changed is not None:
            await self._keeper.keep(membership=changed)

    async def _renew_or_postpone(self) -> None:
        """Renew; if the new key cannot be saved, later, and from memory before it is too late."""
        try:
            await self._renew()
        except StateError as error:
            life_s, elapsed_s = self._certificate_age()
            if life_s - elapsed_s > life_s * _LAST_SHARE:
                self._postpone(error)
                return
            self._reporter.renewing_unsaved(error)
            await self._renew(must_save=False)

    def _postpone(self, error: StateError) -> None:
        life_s, elapsed_s = self._certificate_age()
        if not self._is_postponed:
            self._reporter.renewal_postponed(error, max(0.0, life_s - elapsed_s))
        self._is_postponed = True
        self._certificate_due = Deadline(read_clocks(), _SAVE_AGAIN_S)

    async def _renew(self, *, must_save: bool = True) -> None:
        """Get a certificate for a new key.

        Raises:
            GatewayError: the gateway gave none.
            StateError: the new key could not be saved, so it was not offered.
        """
        offer = self._offer or _Offer(new_key(), self._next_end_to_end(), is_saved=False)
        if must_save and not offer.is_saved:
            await self._keeper.save_offer(key_to_pem(offer.key), offer.end_to_end)
            offer = replace(offer, is_saved=True)
        self._offer = offer
        try:
            answer = await self._asserting(lambda: self._ask_renewal(offer.key, offer.end_to_end))
        except GatewayRefused as refused:
            if refused.code == "key_reused":
                self._offer = None  # so that the next try makes a new one
                await self._keeper.discard_offer()
            raise
        self._is_postponed = False
        self._offer = None
        self.link = KeyPair(key_to_pem(offer.key), answer.certificate_pem.encode())
        self.end_to_end = offer.end_to_end or self.end_to_end
        self._take_token(answer)
        life_s = answer.certificate_expires_at - answer.server_time
        self._certificate_due = Deadline(read_clocks(), certificate_renewal_after_s(life_s))
        changed = self._remember(
            relays=tuple(answer.relays), services_ca_pem=answer.services_ca_pem
        )
        await self._keeper.keep(link=self.link, end_to_end=offer.end_to_end, membership=changed)
        self._reporter.certificate_renewed()
        self.listeners.told()
        self.listeners.certificate()
        if not self.authentication_keys:
            await self._refresh_token()

    def _offer_on_disk(self) -> _Offer | None:
        """The keys of a renewal whose answer never came."""
        key_pem = self._state.next_key()
        if key_pem is None or key_pem == self.link.key_pem:  # or was taken over before a crash
            return None
        return _Offer(key_from_pem(key_pem), self._state.next_end_to_end(), is_saved=True)

    async def _ask_renewal(
        self, key: ec.EllipticCurvePrivateKey, end_to_end: KeyPair | None
    ) -> RenewResponse:
        signer = key_from_pem(self.link.key_pem)
        return await self._gateway.renew(
            RenewRequest(
                assertion=self._assertion(signer, RENEW),
                csr_pem=make_csr(key).decode("ascii"),
                end_to_end_certificate_pem=(
                    None if end_to_end is None else end_to_end.certificate_pem.decode("ascii")
                ),
                instance=self.instance,
                hostname=self._hostname,
            )
        )

    async def _asserting(self, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Make a call that carries an assertion; once more if only our clock was wrong."""
        try:
            answer = await call()
        except GatewayRefused as refused:
            if refused.is_fatal or not self._corrects_clock(refused.server_time):
                self.refusal = str(refused)
                raise
            answer = await call()
        self.refusal = ""
        self._clock_offset_s = answer.server_time - time.time()
        return answer

    def _corrects_clock(self, server_time: float | None) -> bool:
        if server_time is None:
            return False
        offset_s = server_time - time.time()
        is_news = abs(offset_s - self._clock_offset_s) > _TOLERATED_SKEW_S
        if is_news:
            self._reporter.clock_is_wrong(offset_s)
            self._clock_offset_s = offset_s
        return is_news

    def _assertion(self, key: ec.EllipticCurvePrivateKey, path: str) -> str:
        return sign_assertion(
            identity=self.identity(),
            key=key,
            audience=self._gateway.endpoint(path),
            now=time.time() + self._clock_offset_s,
        )

    # -- what the answers change

    def _hear_of(self, other: OtherHost | None) -> None:
        if other is not None and other != self.other_host:
            self._reporter.identity_shared(other.hostname, other.since)
        self.other_host = other

    def _take_token(self, answer: TokenResponse | RenewResponse) -> None:
        self.token = Secret(answer.token)
        self.token_expires_at = answer.token_expires_at
        life_s = answer.token_expires_at - answer.server_time
        self._token_due = Deadline(read_clocks(), token_refresh_after_s(life_s, self._rng))

    def _remember(self, **changes: object) -> Membership | None:
        """Take over what the gateway said; return it if it is new."""
        changed = msgspec.structs.replace(self.membership, **changes)
        if changed == self.membership:
            return None
        self.membership = changed
        return changed

    def _next_end_to_end(self) -> KeyPair | None:
        """A new end-to-end key, when the one we have is past two thirds of its life."""
        certificate = _leaf(self.end_to_end.certificate_pem)
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if datetime.now(UTC) < start + (end - start) * 2 / 3:
            return None
        return new_end_to_end(self.membership.tunnel_id)

    # -- time

    def _token_due_s(self) -> float:
        return self._token_due.remaining_s(read_clocks())

    def _certificate_due_s(self) -> float:
        return self._certificate_due.remaining_s(read_clocks())

    async def _wait(self, delay_s: float) -> None:
        try:
            async with asyncio.timeout(min(delay_s, _LOOK_S)):
                await self._wanted.wait()
                self._wanted.clear()
        except TimeoutError:
            return

    def _certificate_age(self) -> tuple[float, float]:
        certificate = _leaf(self.link.certificate_pem)
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        now = datetime.now(UTC) + timedelta(seconds=self._clock_offset_s)
        return (end - start).total_seconds(), (now - start).total_seconds()


def retry_delay_s(backoff: Backoff, error: GatewayError | StateError) -> float:
    """How long to wait before the gateway is asked again after it failed."""
    if not isinstance(error, GatewayRefused):
        return backoff.next_delay_s(_UNREACHABLE_CAP_S)
    # A proxy answers with 502, 503 or 504 for a gateway that is away.
    is_away = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    delay_s = backoff.next_delay_s(_UNREACHABLE_CAP_S if is_away else None)
    return max(delay_s, min(error.retry_after_s or 0.0, MAX_RETRY_AFTER_S))


def new_end_to_end(tunnel_id: str) -> KeyPair:
    """A new end-to-end key with its self-signed certificate."""
    key = new_key()
    certificate = self_signed_certificate(key, tunnel_hostname(tunnel_id), END_TO_END_LIFE)
    return KeyPair(key_to_pem(key), certificate)


def _leaf(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pem)[0]
