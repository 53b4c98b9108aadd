"""The payloads of control frames and of OPEN: small, strict JSON documents.

Unknown fields are ignored, so that a newer peer can add one; a missing or ill-typed one
closes the link. TRUST and TRUST_HELD are in `trust`.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

import msgspec

from byoai_shared.protocol.credit import INITIAL_CREDIT
from byoai_shared.protocol.errors import RemoteProtocolError
from byoai_shared.protocol.frames import MAX_CREDIT

PROTOCOL_VERSION: Final = 1
MAX_STATUS_BYTES: Final = 16 * 1024
"""A STATUS, encoded: the relay passes it on inside a PRESENCE, which must fit a frame."""
MAX_ROUND_TRIP_US: Final = 60_000_000

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Credit = Annotated[int, msgspec.Meta(ge=0, le=MAX_CREDIT)]
Sentence = Annotated[str, msgspec.Meta(max_length=500)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Microseconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_ROUND_TRIP_US)]
Version = Annotated[int, msgspec.Meta(ge=0, le=65535)]
UnixTime = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Epoch = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Role(StrEnum):
    """Which of the three programs speaks."""

    AGENT = "agent"
    GATEWAY = "gateway"
    RELAY = "relay"


class Control(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every control payload has in common: immutable, by name."""


class Hello(Control, frozen=True):
    """The first frame both ways."""

    role: Role
    node: Name
    """Who: an agent id, a gateway's or a relay's name."""
    instance: Name
    """Which run of it: random at each start."""
    epoch: Epoch = 0
    """Rises with each link an instance makes; the highest replaces the others."""
    versions: Annotated[tuple[Version, ...], msgspec.Meta(max_length=16)] = (PROTOCOL_VERSION,)
    initial_credit: Credit = INITIAL_CREDIT
    """Bytes the peer may send on a new stream before the first CREDIT."""
    max_streams: Count = 64
    """Streams the sender takes at once: an agent in all, a relay for each tunnel."""
    software: Annotated[str, msgspec.Meta(max_length=255)] = ""
    unix_time: UnixTime = 0
    """The sender's clock, so that a wrong one is found; 0 when it does not say."""
    takes_services: bool = False
    """Relay: a gateway may send SERVICES."""


class Auth(Control, frozen=True):
    """A tunnel token, at start and at every rotation."""

    token: Annotated[str, msgspec.Meta(max_length=4096)]

    def __repr__(self) -> str:
        return "Auth(token=***)"


class AuthOk(Control, frozen=True):
    """The answer to AUTH: until when the link is good, in Unix seconds."""

    accepted_until: UnixTime
    refusal: Sentence = ""
    """Why this token was refused, when the link goes on with the one before it."""


class UpstreamHealth(StrEnum):
    """What the agent knows of its model servers."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    DOWN = "down"
    UNKNOWN = "unknown"


class Status(Control, frozen=True):
    """What an agent says of itself, on change and every 30 s; the relay passes it on."""

    models: tuple[Name, ...] = ()
    capabilities: tuple[Name, ...] = ()
    in_flight: Count = 0
    queued: Count = 0
    capacity: Count = 0
    health: UpstreamHealth = UpstreamHealth.UNKNOWN


class Services(Control, frozen=True):
    """Gateway to relay: what it must know of the services' certificates."""

    revoked: Annotated[str, msgspec.Meta(max_length=28_000)] = ""
    """A statement of the services CA; see `byoai_shared.revoked_services`."""
    certificate: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    """A new certificate (PEM) for the relay's key, when the one it presented is to be renewed."""


class PresenceState(StrEnum):
    """What happened to an agent's link."""

    ONLINE = "online"
    CHANGED = "changed"
    GONE = "gone"


class GoneReason(StrEnum):
    """Why an agent went."""

    STOPPED = "stopped"
    """It said so, as it does when it is stopped."""
    NETWORK_LOST = "network_lost"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 -- a word
    CERTIFICATE_EXPIRED = "certificate_expired"
    REVOKED = "revoked"
    REPLACED = "replaced"
    DRAINED = "drained"
    """The relay was drained."""
    REFUSED = "refused"
    """The relay closed its link over an error."""


class Presence(Control, frozen=True):
    """Relay to gateways: an agent of a tunnel came, changed or went."""

    tunnel_id: Name
    agent_id: Name
    instance: Name
    epoch: Epoch
    state: PresenceState
    status: Status = Status()
    round_trip_us: Microseconds | None = None
    accepted_until: UnixTime = 0
    """The end of the agent's token, Unix seconds."""
    token_refusal: Sentence = ""
    """Why the relay refused the agent's newest token, when the link goes on with an older one."""
    gone_reason: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """Of an agent that is gone: a `GoneReason`, or one that is newer than its reader."""


class Goaway(Control, frozen=True):
    """Connect elsewhere first, then drain."""

    code: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""
    retry_after_ms: Annotated[int, msgspec.Meta(ge=0, le=3_600_000)] = 0


class Open(Control, frozen=True):
    """A new stream: `tunnel_id` from a gateway, `dialer` from a relay to the agent."""

    credit: Credit
    """Bytes the acceptor may send before the first CREDIT."""
    tunnel_id: Annotated[str, msgspec.Meta(max_length=64)] = ""
    agent_id: Annotated[str, msgspec.Meta(max_length=255)] = ""
    """Gateway to relay: the agent to ask; without it, the least busy one of the tunnel."""
    dialer: Annotated[str, msgspec.Meta(max_length=255)] = ""
    round_trip_us: Microseconds = 0
    """Relay to agent: the round trip of the dialer's own link."""


_Payload = TypeVar("_Payload", bound=Control)
_encoder = msgspec.json.Encoder()
_decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {}


def encode_control(payload: Control) -> bytes:
    """Make the JSON bytes of a control payload."""
    return _encoder.encode(payload)


def decode_control(type_: type[_Payload], payload: memoryview | bytes) -> _Payload:
    """Read a control payload.

    Raises:
        RemoteProtocolError: it is not JSON, or not of this shape. The sentence names the
            kind only: a payload may hold a token.
    """
    decoder = _decoders.get(type_)
    if decoder is None:
        decoder = _decoders[type_] = msgspec.json.Decoder(type_)
    try:
        value: _Payload = decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RemoteProtocolError(f"malformed {type_.__name__} payload") from None
    return value


def clamp_us(seconds: float) -> int:
    """Round a round trip to microseconds that its reader will not refuse."""
    return round(min(max(seconds, 0.0) * 1e6, MAX_ROUND_TRIP_US))


def fit_status(status: Status, limit: int = MAX_STATUS_BYTES) -> Status:
    """Leave out the last models of a STATUS until it is of `limit` bytes, 256 or more, at most.

    If there are no models left to leave out, the capabilities are.
    """
    while len(encode_control(status)) > limit:
        if status.models:
            kept = status.models[: len(status.models) * 3 // 4]
            status = msgspec.structs.replace(status, models=kept)
        else:
            status = msgspec.structs.replace(status, capabilities=())
    return status
