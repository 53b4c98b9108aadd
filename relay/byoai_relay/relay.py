"""The relay at work: two listeners, the links that come in, and what their events mean.

All of it runs in callbacks of one event loop. A link's callback never waits: it changes the
directory, the trust or a route, and leaves frames in outboxes that are flushed at the end of
the loop's turn. One ticker serves every link's timers.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from byoai_relay.departures import reason_of_close, reason_of_end
from byoai_relay.directory import AgentEntry, Directory
from byoai_relay.port import WORK_BATCH, Port
from byoai_relay.presence import PresenceReports
from byoai_relay.relay_link import RelayLink
from byoai_relay.switch import Switch
from byoai_relay.trust import Believed, TokenDisbelieved, TrustStore
from byoai_shared.errors import ByoaiError
from byoai_shared.identity import (
    AgentIdentity,
    GatewayIdentity,
    Identity,
    certificate_identity,
)
from byoai_shared.link.websocket import WebSocketLink
from byoai_shared.logs import get_logger
from byoai_shared.protocol import events as ev
from byoai_shared.protocol.control import (
    AuthOk,
    GoneReason,
    Hello,
    PresenceState,
    Role,
    Services,
    Status,
    encode_control,
)
from byoai_shared.protocol.errors import CloseCode, RemoteProtocolError, ResetCode
from byoai_shared.protocol.frames import FrameType
from byoai_shared.protocol.trust import Trust, TrustHeld
from byoai_shared.revoked_services import RevokedService, RevokedServices

AUTH_TIMEOUT_S: Final = 10.0
CLOCK_REPORT_S: Final = 30.0
"""Gateways hear the relay's time so often, besides in its HELLO."""
WARN_EVERY_S: Final = 60.0
"""A warning that a stranger can cause is written so often at most."""
TOO_MANY_LINKS: Final = "too many links from this address"
MAX_URGENT_BYTES: Final = 64 * 1024 * 1024
"""PRESENCE, RESET and CREDIT frames that may wait on one link: ten thousand agents' worth."""

log = get_logger("relay")


@dataclass(frozen=True, slots=True)
class RelayTimes:
    """How long things may go on that are about to end."""

    drain_s: float = 600.0
    token_grace_s: float = 60.0


class Relay:
    """All links of a relay."""

    def __init__(
        self,
        hello: Hello,
        switch: Switch,
        directory: Directory,
        *,
        times: RelayTimes,
        now: Callable[[], float],
        unix_now: Callable[[], float] = time.time,
    ) -> None:
        self.hello = hello
        self.switch = switch
        self.directory = directory
        self.trust = TrustStore()
        self._revoked_services = RevokedServices()
        self.on_services: Callable[[Services], None] = lambda _services: None
        """Called with what a gateway sends about services' certificates."""
        self.now = now
        self.links_accepted = 0
        self.links_slowed = 0
        self.tokens_refused: Counter[str] = Counter()
        """By the name of the fault."""
        self.is_draining = False
        self._report_clock_at = 0.0
        self._warn_of_limit_at = -WARN_EVERY_S
        self._unix_now = unix_now
        self._times = times
        self._presence = PresenceReports(directory, switch.settle)
        self._links: dict[Port, RelayLink] = {}
        self._of_tunnel: dict[str, set[RelayLink]] = {}
        """Agents' links."""
        self._changed_by: RelayLink | None = None
        """Whose TRUST is in force."""
        self._is_settling = False
        self._idle: asyncio.Event = asyncio.Event()

    def hello_now(self) -> Hello:
        """Make the HELLO of a link that begins now."""
        return msgspec.structs.replace(self.hello, unix_time=int(self._unix_now()))

    def links(self) -> tuple[RelayLink, ...]:
        """Return the links that are up."""
        return tuple(self._links.values())

    @property
    def link_count(self) -> int:
        """Links that are up."""
        return len(self._links)

    @property
    def is_ready(self) -> bool:
        """Whether agents can be let in and reached: a gateway is here and was heard."""
        has_gateway = next(self.directory.gateways(), None) is not None
        return self.trust.is_known and has_gateway and not self.is_draining

    # -- links come and go

    def attach_agent(self, link: WebSocketLink) -> RelayLink:
        """Take a link on the agents' listener."""
        return self._attach(link, AgentIdentity)

    def attach_gateway(self, link: WebSocketLink) -> RelayLink:
        """Take a link on the gateways' listener."""
        return self._attach(link, GatewayIdentity)

    def _attach(
        self, link: WebSocketLink, expected: type[AgentIdentity] | type[GatewayIdentity]
    ) -> RelayLink:
        identity: Identity | None = None
        with contextlib.suppress(ByoaiError):
            identity = certificate_identity(link.peer_certificate)
        welcome = isinstance(identity, expected)
        relay_link = RelayLink(self, link, identity if welcome else None)
        self._links[relay_link.port] = relay_link
        if isinstance(relay_link.identity, AgentIdentity):
            self._of_tunnel.setdefault(relay_link.port.tunnel_id, set()).add(relay_link)
        self.directory.add_port(relay_link.port)
        self.links_accepted += 1
        if not welcome:
            self._refuse(relay_link, CloseCode.WRONG_ROLE, "this certificate has no business here")
        elif self._revoked_services.denies(link.peer_certificate):
            self._refuse(relay_link, CloseCode.REVOKED, "this gateway's certificate was revoked")
        elif isinstance(identity, GatewayIdentity) and not self._establish(link):
            self._refuse(relay_link, CloseCode.OVERLOADED, TOO_MANY_LINKS)
        elif self.is_draining:
            self._refuse(relay_link, CloseCode.GOING_AWAY, "this relay is draining")
        elif isinstance(identity, AgentIdentity):
            relay_link.close_after = self.now() + AUTH_TIMEOUT_S
            relay_link.close_code = CloseCode.HANDSHAKE_TIMEOUT
        return relay_link

    def _establish(self, link: WebSocketLink) -> bool:
        """Keep a link whose peer has proved who it is; False if its address has too many.

        An agent's certificate is no such proof: that of a revoked one is good for days.
        """
        if link.establish():
            return True
        if not link.is_evicted:
            self._warn_of_limit(link)
        return False

    def _warn_of_limit(self, link: WebSocketLink) -> None:
        now = self.now()
        if now < self._warn_of_limit_at:
            return
        self._warn_of_limit_at = now + WARN_EVERY_S
        log.warning(
            "links.over_limit",
            peer=link.peer_address,
            setting="limits.address_links",
            reason="this address has as many links as the setting allows",
            next="more links from it are refused; raise the setting, or name the address in "
            "limits.trusted_proxies if it is a load balancer's",
        )

    def _refuse(self, relay_link: RelayLink, code: CloseCode, reason: str) -> None:
        # Not in this very call: the WebSocket is being handed over.
        loop = asyncio.get_running_loop()
        loop.call_soon(relay_link.link.close, code, reason)

    def receive(self, relay_link: RelayLink, message: bytes) -> None:
        """Act on one message of a link."""
        now = self.now()
        for event in relay_link.port.receive(message, now):
            try:
                self._handle(relay_link, event)
            except RemoteProtocolError as error:
                self._close(relay_link, error.close_code, str(error))
                break
        if relay_link.port.outbox:
            relay_link.port.mark_dirty()
        self.switch.settle()
        if relay_link.port.work >= WORK_BATCH and relay_link.port.tunnel_id:
            self._charge_work(relay_link, now)

    def _charge_work(self, relay_link: RelayLink, now: float) -> None:
        """Charge what an agent's frames cost to its tunnel; slow the link if that is too much."""
        wait_s = relay_link.port.charge_work(now)
        if wait_s <= 0:
            return
        if relay_link.slowed_until is None:
            self.links_slowed += 1
            log.warning(
                "link.slowed",
                tunnel_id=relay_link.port.tunnel_id,
                peer=relay_link.link.peer_address,
                reason="its frames cost more work than its tunnel may use",
                retry_in_s=round(wait_s, 1),
                next="nothing is read from this link until then",
            )
            relay_link.link.pause_reading()
        relay_link.slowed_until = now + wait_s

    def _resume(self, relay_link: RelayLink, now: float) -> None:
        if relay_link.slowed_until is not None and relay_link.slowed_until <= now:
            relay_link.slowed_until = None
            relay_link.link.resume_reading()

    def forget(self, relay_link: RelayLink, code: int | None, reason: str) -> None:
        """Clean up after a link that is gone; its streams end at once."""
        port = relay_link.port
        self._links.pop(port, None)
        self._forget_identity(relay_link)
        entry = self.directory.remove_port(port)
        self.switch.remove(port)
        if entry is not None:
            self._presence.announce_gone(entry, reason_of_end(code))
        if port.tunnel_id and port.work:
            port.charge_work(self.now())  # or links that end early would work free of charge
        if port.peer is not None:
            self._log_closed(relay_link, code, reason)
        self._check_idle()

    def _forget_identity(self, relay_link: RelayLink) -> None:
        match relay_link.identity:
            case GatewayIdentity(name):
                # A link that took the place of this one may be in the middle of a TRUST.
                is_last = all(it.identity != relay_link.identity for it in self.links())
                if is_last and self.trust.forget_unfinished(name):
                    self._ask_another()
            case AgentIdentity(tunnel_id):
                of_tunnel = self._of_tunnel.get(tunnel_id, set())
                of_tunnel.discard(relay_link)
                if not of_tunnel:
                    self._of_tunnel.pop(tunnel_id, None)
            case _:
                pass
        if self._changed_by is relay_link:
            self._changed_by = None

    def _log_closed(self, relay_link: RelayLink, code: int | None, reason: str) -> None:
        port = relay_link.port
        failure = port.failure
        log.info(
            "link.closed",
            role=port.peer.role if port.peer else None,
            node=port.peer.node if port.peer else None,
            tunnel_id=port.tunnel_id or None,
            peer=relay_link.link.peer_address,
            code=failure.code.name.lower() if failure else code,
            reason=failure.reason if failure else reason,
        )

    def _close(self, relay_link: RelayLink, code: CloseCode, reason: str) -> None:
        """Close a link for a reason that its peer is told; its streams end at once."""
        events: list[ev.Event] = []
        relay_link.port.fail(code, reason, events)
        self._presence.delist(relay_link.port, reason_of_close(code))
        if code is CloseCode.IDLE:
            relay_link.link.abort()
        else:
            relay_link.link.close(code, reason)
        self.switch.remove(relay_link.port)

    # -- what a link said

    def _handle(self, relay_link: RelayLink, event: ev.Event) -> None:
        match event:
            case ev.PeerIntroduced(hello):
                self._introduce(relay_link, hello)
            case ev.TokenPresented(token):
                self._authenticate(relay_link, token)
            case ev.StatusReported(status):
                self._take_status(relay_link, status)
            case ev.TrustGiven(trust):
                self._take_trust(relay_link, trust)
            case ev.ServicesGiven(services):
                self.on_services(services)
            case ev.GoawayReceived():
                self._let_go(relay_link)
            case ev.LinkFailed(code, reason):
                self._close(relay_link, code, reason)
            case _:
                pass

    def _introduce(self, relay_link: RelayLink, hello: Hello) -> None:
        log.info(
            "link.opened",
            role=hello.role,
            node=hello.node,
            tunnel_id=relay_link.port.tunnel_id or None,
            peer=relay_link.link.peer_address,
            software=hello.software,
        )
        if hello.role is Role.GATEWAY:
            self._presence.list_agents(relay_link.port)
            # Last: the gateway takes it as the end of the list.
            self._report_trust(relay_link.port, self.trust.held)

    def _authenticate(self, relay_link: RelayLink, token: str) -> None:
        port, identity = relay_link.port, relay_link.identity
        if not isinstance(identity, AgentIdentity) or port.peer is None:
            return
        try:
            believed = self.trust.verify(
                token,
                identity,
                certificate_thumbprint=relay_link.thumbprint,
                now_unix=self._unix_now(),
            )
        except TokenDisbelieved as error:
            if not self._goes_on_despite(relay_link, identity, error):
                raise
            return
        known = self.directory.entry(port)
        current = self.directory.current(identity.tunnel_id, identity.agent_id)
        if known is None and current is not None and not relay_link.is_leaving:
            self._require_newer(port.peer, current)
        if not self._establish(relay_link.link):
            raise RemoteProtocolError(TOO_MANY_LINKS, CloseCode.OVERLOADED)
        relay_link.believed = believed
        accepted = AuthOk(accepted_until=believed.claims.expires_at)
        port.outbox.put_urgent(FrameType.AUTH_OK, 0, encode_control(accepted))
        if relay_link.is_leaving:
            # Its streams may go on, as long as its token is good; it is not listed again.
            return
        relay_link.close_after = None
        self._enlist(relay_link, identity, port.peer, believed)

    def _goes_on_despite(
        self, relay_link: RelayLink, identity: AgentIdentity, error: TokenDisbelieved
    ) -> bool:
        """Go on with the token before this one, if that is good by our own reckoning.

        Returns False if it is not, or if the refusal is the agent's own fault.
        """
        self.tokens_refused[error.fault.name.lower()] += 1
        believed = relay_link.believed
        goes_on = error.may_be_our_fault and self._is_good(believed)
        log.warning(
            "token.refused",
            tunnel_id=identity.tunnel_id,
            node=identity.agent_id,
            peer=relay_link.link.peer_address,
            reason=str(error),
            next="the link goes on until its older token expires" if goes_on else "link closed",
        )
        if believed is None or not goes_on:
            return False
        answer = AuthOk(accepted_until=believed.claims.expires_at, refusal=str(error))
        relay_link.port.outbox.put_urgent(FrameType.AUTH_OK, 0, encode_control(answer))
        entry = self.directory.entry(relay_link.port)
        if entry is not None:
            entry.token_refusal = str(error)
            self._presence.announce(entry, PresenceState.CHANGED)
        return True

    def _is_good(self, believed: Believed | None) -> bool:
        return (
            believed is not None
            and believed.claims.expires_at > self._unix_now()
            and self.trust.still_trusts(believed.key_id)
        )

    def _enlist(
        self, relay_link: RelayLink, identity: AgentIdentity, hello: Hello, believed: Believed
    ) -> None:
        port = relay_link.port
        known = self.directory.entry(port)
        entry = AgentEntry(
            port=port,
            tunnel_id=identity.tunnel_id,
            agent_id=identity.agent_id,
            instance=hello.instance,
            epoch=hello.epoch,
            accepted_until=believed.claims.expires_at,
            status=relay_link.status,
        )
        replaced = self.directory.enlist(entry)
        self._presence.note_status(relay_link, entry)
        if replaced is not None:
            self._retire(self._links[replaced.port], replaced, entry)
        state = PresenceState.ONLINE if known is None else PresenceState.CHANGED
        self._presence.announce(entry, state)
        log.info("agent.authenticated", tunnel_id=entry.tunnel_id, node=entry.agent_id)

    def _require_newer(self, hello: Hello, current: AgentEntry) -> None:
        """Take a new link over the listed one only if it cannot be a stale straggler."""
        if hello.instance == current.instance and hello.epoch <= current.epoch:
            raise RemoteProtocolError(
                f"epoch {hello.epoch} is not above {current.epoch}", CloseCode.REPLACED
            )

    def _retire(self, old: RelayLink, replaced: AgentEntry, entry: AgentEntry) -> None:
        """Let the replaced link finish its streams, if its process is the one that lives on."""
        if replaced.instance == entry.instance:
            until = self.now() + self._times.drain_s
            old.drain(CloseCode.REPLACED, "a newer link took over", until)
        else:
            self._close(old, CloseCode.REPLACED, "the agent was started again")

    def _take_status(self, relay_link: RelayLink, status: Status) -> None:
        relay_link.status = status
        entry = self.directory.entry(relay_link.port)
        if entry is not None:
            self._presence.note_status(relay_link, entry)
            self._presence.announce(entry, PresenceState.CHANGED)

    def _let_go(self, relay_link: RelayLink) -> None:
        self._presence.delist(relay_link.port, GoneReason.STOPPED)
        relay_link.leave(CloseCode.GOING_AWAY, self.now() + self._times.drain_s)

    # -- what is no longer believed, and what time ends

    def _take_trust(self, relay_link: RelayLink, trust: Trust) -> None:
        identity = relay_link.identity
        if not isinstance(identity, GatewayIdentity):
            return
        taken = self.trust.take(trust, gateway=identity.name, now_unix=self._unix_now())
        if taken.reply is not None:
            self._report_trust(relay_link.port, taken.reply)
        if taken.refusal:
            log.warning(
                "trust.refused",
                gateway=identity.name,
                revision=trust.revision,
                reason=taken.refusal,
                next="the gateway sends it again; check the clocks of both, and that the "
                "gateway's certificate was not stolen",
            )
        if taken.denied:
            self._end_denied(taken.denied)
        if taken.is_whole:
            self._enforce_trust()
        if taken.is_news:
            self._changed_by = relay_link
            log.info(
                "trust.replaced",
                gateway=identity.name,
                revision=trust.revision,
                count=self.trust.denial_count,
            )
            for gateway in self.directory.gateways():
                if gateway is not relay_link.port:
                    self._report_trust(gateway, self.trust.held)
        self._settle_trust_soon()

    def _settle_trust_soon(self) -> None:
        """Free the denials that ended in the turns that follow, some in each."""
        if not self._is_settling and not self.trust.is_settled:
            self._is_settling = True
            asyncio.get_running_loop().call_soon(self._settle_trust)

    def _settle_trust(self) -> None:
        self._is_settling = False
        reply = self.trust.settle()
        if reply is not None:
            if self._changed_by is not None:
                self._report_trust(self._changed_by.port, reply)
            else:
                self._ask_another()
            self.switch.settle()
        self._settle_trust_soon()

    def _ask_another(self) -> None:
        """Ask any gateway for the whole: the link of the one that has to send it is gone.

        If there is none, the next one that comes finds out by the digest that it is told.
        """
        for port in self.directory.gateways():
            relay_link = self._links.get(port)
            if relay_link is not None and isinstance(relay_link.identity, GatewayIdentity):
                self._report_trust(port, self.trust.ask(relay_link.identity.name))
                return

    def _report_trust(self, gateway: Port, held: TrustHeld) -> None:
        gateway.outbox.put_urgent(FrameType.TRUST_HELD, 0, encode_control(held))
        gateway.mark_dirty()

    def _end_denied(self, denied: frozenset[str]) -> None:
        """End the links of agents that are denied by name, also where there was no room for it.

        The links are looked up by tunnel: there may be many, and many parts of one TRUST.
        """
        for subject in denied:
            tunnel_id, _, agent_id = subject.partition("/")
            for relay_link in tuple(self._of_tunnel.get(tunnel_id, ())):
                identity = relay_link.identity
                if isinstance(identity, AgentIdentity) and agent_id in {"", identity.agent_id}:
                    self._revoke(relay_link)

    def _revoke(self, relay_link: RelayLink) -> None:
        self.switch.abort_all(relay_link.port, ResetCode.REVOKED)
        self._close(relay_link, CloseCode.REVOKED, "the tunnel was revoked")

    def _enforce_trust(self) -> None:
        """End the links of agents that the trust in force denies, or whose key it dropped."""
        for relay_link in self.links():
            identity, believed = relay_link.identity, relay_link.believed
            if not isinstance(identity, AgentIdentity):
                continue
            if self.trust.denies(identity):
                self._revoke(relay_link)
            elif believed is not None and not self.trust.still_trusts(believed.key_id):
                self._close(relay_link, CloseCode.TOKEN_REFUSED, "the signing key was dropped")

    def revoke_services(self, rows: tuple[RevokedService, ...]) -> None:
        """Believe that gateways' certificates are revoked, and end the links that they opened.

        A statement that says nothing new costs no look at the links: it may be replayed at will.
        """
        if not self._revoked_services.add(rows, self._unix_now()):
            return
        for relay_link in self.links():
            if self._revoked_services.denies(relay_link.link.peer_certificate):
                reason = "this gateway's certificate was revoked"
                self._close(relay_link, CloseCode.REVOKED, reason)

    def tick(self) -> None:
        """Let time pass for every link; call it every second."""
        now, unix_now = self.now(), self._unix_now()
        self._report_clock(now, unix_now)
        for relay_link in self.links():
            for event in relay_link.port.tick(now):
                self._handle(relay_link, event)
            self._expire(relay_link, now, unix_now)
            self._relieve(relay_link)
            self._resume(relay_link, now)
            if relay_link.port.outbox:
                relay_link.link.flush_soon()
        self.switch.settle()

    def _report_clock(self, now: float, unix_now: float) -> None:
        """Repeat the time, so that gateways find a wrong clock, and take their warning back."""
        if now < self._report_clock_at:
            return
        self._report_clock_at = now + CLOCK_REPORT_S
        report = encode_control(msgspec.structs.replace(self.trust.held, unix_time=int(unix_now)))
        for gateway in self.directory.gateways():
            gateway.outbox.put_latest(FrameType.TRUST_HELD, ("clock",), report)
            gateway.mark_dirty()

    def _expire(self, relay_link: RelayLink, now: float, unix_now: float) -> None:
        port = relay_link.port
        believed = relay_link.believed
        if believed is not None and believed.claims.expires_at <= unix_now:
            relay_link.believed = None
            self._presence.delist(port, GoneReason.TOKEN_EXPIRED)
            until = now + self._times.token_grace_s
            relay_link.drain(CloseCode.TOKEN_EXPIRED, "the tunnel token expired", until)
        deadline = relay_link.close_after
        if port.failure is not None:
            return
        if unix_now >= relay_link.expires_at:
            self._close(relay_link, CloseCode.CERTIFICATE_EXPIRED, "its certificate expired")
            return
        if deadline is None:
            return
        is_done = relay_link.is_leaving and not port.legs and not port.outbox
        if now >= deadline or is_done:
            self._close(relay_link, relay_link.close_code, "its time is up")

    def _relieve(self, relay_link: RelayLink) -> None:
        """Give up a peer for whom words pile up that no credit holds back and none may drop."""
        outbox = relay_link.port.outbox
        if outbox.queued_bytes > MAX_URGENT_BYTES and outbox.urgent_bytes > MAX_URGENT_BYTES:
            self._close(relay_link, CloseCode.OVERLOADED, "it does not take what it is told")

    # -- the end

    async def drain(self) -> None:
        """Send everyone elsewhere, let the streams finish, then close every link."""
        self.is_draining = True
        until = self.now() + self._times.drain_s
        for relay_link in self.links():
            relay_link.drain(CloseCode.GOING_AWAY, "this relay is draining", until)
        self._check_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._times.drain_s):
                await self._idle.wait()
        for relay_link in self.links():
            relay_link.link.close(CloseCode.GOING_AWAY, "this relay is gone")

    def _check_idle(self) -> None:
        if self.is_draining and not self._links:
            self._idle.set()
