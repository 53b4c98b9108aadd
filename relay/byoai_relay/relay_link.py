"""What the relay keeps for one link, between the WebSocket and the relay's decisions."""

from collections.abc import Callable
from typing import Protocol

from byoai_relay.port import Port
from byoai_relay.switch import Switch
from byoai_relay.trust import Believed
from byoai_shared.certificate_life import read_life
from byoai_shared.errors import ByoaiError
from byoai_shared.identity import (
    AgentIdentity,
    GatewayIdentity,
    Identity,
    certificate_thumbprint,
)
from byoai_shared.link.websocket import WebSocketLink
from byoai_shared.protocol.control import Hello, Role, Status
from byoai_shared.protocol.errors import CloseCode
from byoai_shared.protocol.outbox import Outbox


class LinkOwner(Protocol):
    """What a link needs of the relay that it belongs to."""

    now: Callable[[], float]

    @property
    def switch(self) -> Switch:
        """Where the streams of the link are joined to others."""
        ...

    def hello_now(self) -> Hello:
        """Make the HELLO of a link that begins now."""
        ...

    def receive(self, relay_link: "RelayLink", message: bytes) -> None:
        """Act on one message of a link."""

    def forget(self, relay_link: "RelayLink", code: int | None, reason: str) -> None:
        """Clean up after a link that is gone."""


def _who(identity: Identity | None) -> tuple[Role, str] | None:
    """Say as whom a certificate lets its holder speak to a relay."""
    match identity:
        case AgentIdentity():
            return Role.AGENT, identity.agent_id
        case GatewayIdentity():
            return Role.GATEWAY, identity.name
        case _:
            return None


def _expiry(certificate: bytes) -> float:
    """When a certificate ends, Unix seconds; one that cannot be read is refused for that."""
    try:
        return read_life(certificate).expires_at
    except ByoaiError:
        return 0.0


class RelayLink:
    """What the relay keeps for one link: the WebSocket, the port, and when it must be gone."""

    __slots__ = (
        "_relay",
        "believed",
        "close_after",
        "close_code",
        "expires_at",
        "has_status_cut",
        "identity",
        "is_leaving",
        "link",
        "port",
        "slowed_until",
        "status",
        "thumbprint",
    )

    def __init__(self, relay: LinkOwner, link: WebSocketLink, identity: Identity | None) -> None:
        self._relay = relay
        self.link = link
        self.identity = identity
        self.thumbprint = certificate_thumbprint(link.peer_certificate)
        self.expires_at = _expiry(link.peer_certificate)
        self.status = Status()
        """What the agent said last, also before its token came."""
        self.has_status_cut = False
        """It was logged that gateways get less of that."""
        self.believed: Believed | None = None
        """The token it presented last."""
        self.is_leaving = False
        """One side said GOAWAY: no new stream comes, and no token changes that."""
        self.close_after: float | None = None
        """When the link is closed at the latest; it is as soon as its streams are done."""
        self.close_code = CloseCode.GOING_AWAY
        self.slowed_until: float | None = None
        """Until when nothing is read, because its tunnel used up its share of work."""
        tunnel_id = identity.tunnel_id if isinstance(identity, AgentIdentity) else ""
        self.port = Port(
            relay.switch,
            relay.hello_now(),
            wake=link.flush_soon,
            now=relay.now(),
            expected=_who(identity),
            tunnel_id=tunnel_id,
        )

    @property
    def outbox(self) -> Outbox:
        """The frames that wait to be sent."""
        return self.port.outbox

    def message_received(self, message: bytes) -> None:
        """Take one message off the link."""
        self._relay.receive(self, message)

    def flushed(self) -> None:
        """Frames left: credit that was held back may flow."""
        self._relay.switch.flushed(self.port)

    def link_closed(self, code: int | None, reason: str) -> None:
        """The WebSocket is gone."""
        self._relay.forget(self, code, reason)

    def drain(self, code: CloseCode, reason: str, until: float) -> None:
        """Ask the peer to go, and close once its streams are done, or at `until`."""
        if not self.is_leaving:
            self.port.go_away(code, reason)
            self.link.flush_soon()
        self.leave(code, until)

    def leave(self, code: CloseCode, until: float) -> None:
        """Close once the streams are done, or at `until`, or before if that was decided."""
        self.is_leaving = True
        self.close_after = until if self.close_after is None else min(self.close_after, until)
        self.close_code = code
