"""Why no agent of a tunnel can be reached, whose fault that is, and what to do about it.

Pure. An agent that was heard of is never blamed for what the gateway has lost itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from byoai_gateway.router.failures import FailureKind
from byoai_shared.protocol.control import GoneReason

_SOON_S: Final = 5.0
_LATER_S: Final = 30.0
"""For what waits for a person."""
_SEE_STATUS: Final = "see `byoai-agent status` on its host"
_START: Final = "start it with `byoai-agent run` on its host"
_SENTENCES: Final[Mapping[GoneReason, tuple[str, str]]] = {
    GoneReason.STOPPED: ("it was stopped", _START),
    GoneReason.NETWORK_LOST: (
        "its network connection was lost",
        "check that its host is running and online; the agent reconnects by itself",
    ),
    GoneReason.TOKEN_EXPIRED: ("its token expired", _SEE_STATUS),
    GoneReason.CERTIFICATE_EXPIRED: ("its certificate expired", _SEE_STATUS),
    GoneReason.REVOKED: (
        "its access was revoked",
        "see the tunnel's page; to join its host again: byoai-agent join CODE --replace",
    ),
    GoneReason.REPLACED: (
        "another run of the same agent took its place",
        "see the tunnel's page: two hosts may use its identity",
    ),
    GoneReason.DRAINED: (
        "its relay was shut down",
        "it reconnects by itself; try again in a few seconds",
    ),
    GoneReason.REFUSED: ("the relay closed its connection because of an error", _SEE_STATUS),
}


@dataclass(frozen=True, slots=True)
class Departure:
    """How the last agent of a tunnel went; times by the monotonic clock."""

    at: float
    reason: GoneReason | None
    """None: the gateway lost the relay by which the agent was reached."""


@dataclass(frozen=True, slots=True)
class Absence:
    """Why no agent of a tunnel can be reached."""

    kind: FailureKind
    message: str
    retry_after_s: float
    left_s: float | None = None
    """How long ago the last agent left, where that is known."""
    reason: GoneReason | None = None

    @property
    def code(self) -> str:
        """The code of its error."""
        return self.kind.value


def no_relay(configured: int) -> Absence:
    """The gateway has no link to any relay."""
    if not configured:
        message = (
            "this service has no relays configured, so it cannot reach agents; tell its operator"
        )
        return Absence(FailureKind.NO_RELAY_CONNECTED, message, _LATER_S)
    message = (
        "this service is not connected to any of its relays, so it cannot reach your agent, which "
        "is not the cause; try again in a few seconds, and tell the operator if this continues"
    )
    return Absence(FailureKind.NO_RELAY_CONNECTED, message, _SOON_S)


def out_of_reach(connected: int, configured: int) -> Absence:
    """The agent may be connected to a relay that the gateway does not reach now."""
    which = f" ({connected} of {configured})" if connected < configured else ""
    message = (
        f"the relays that this service is connected to now{which} do not know your tunnel: your "
        "agent is still reconnecting, or it is connected to another relay; try again in a few "
        f"seconds, and if this continues, {_SEE_STATUS}"
    )
    return Absence(FailureKind.AGENT_UNREACHABLE, message, _SOON_S)


def not_connected() -> Absence:
    """No agent was seen since this gateway was started."""
    message = f"your agent is not connected to any relay; {_START}, or {_SEE_STATUS}"
    return Absence(FailureKind.AGENT_OFFLINE, message, _SOON_S)


def left(departure: Departure, now: float) -> Absence:
    """The last agent went."""
    ago_s = max(0.0, now - departure.at)
    what, advice = ("", f"{_START}, or {_SEE_STATUS}")
    if departure.reason is not None:
        what, advice = _SENTENCES[departure.reason]
    why = f": {what}" if what else ""
    message = f"your agent disconnected {in_words(ago_s)} ago{why}; {advice}"
    return Absence(FailureKind.AGENT_OFFLINE, message, _SOON_S, ago_s, departure.reason)


def never_joined() -> Absence:
    """The tunnel has no agent."""
    message = (
        "no agent has joined this tunnel yet; run the join command on the GPU host, then "
        "`byoai-agent run` (POST /api/tunnel/{tunnelId}/agents makes a new join code)"
    )
    return Absence(FailureKind.AGENT_NEVER_JOINED, message, _LATER_S)


def all_locked() -> Absence:
    """The tunnel has agents, and each of them waits for its owner."""
    message = (
        "this tunnel's agent is locked because one of its old keys was used again; unlock it on "
        "the tunnel's page, or join its host again with a new code "
        "(byoai-agent join CODE --replace)"
    )
    return Absence(FailureKind.AGENT_LOCKED, message, _LATER_S)


def in_words(duration_s: float) -> str:
    """Return a duration as people write it: `42 s`, `3 min`, `5 h`."""
    if duration_s < 120:
        return f"{duration_s:.0f} s"
    if duration_s < 7200:
        return f"{duration_s / 60:.0f} min"
    return f"{duration_s / 3600:.0f} h"
