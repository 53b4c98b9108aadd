"""What agent and gateway say to each other over HTTPS: joining, renewing, fetching tokens.

JSON in camelCase. What the gateway reads refuses unknown fields; what the agent reads ignores
them, so that a newer gateway may say more.
"""

from typing import Annotated, Any, Final

import msgspec

from byoai_shared.api_errors import ApiError, ApiErrorBody

JOIN_FATAL_CODES: Final = frozenset(
    {
        "join_code_used",
        "join_code_expired",
        "join_code_unknown",
    }
)
FATAL_CODES: Final = JOIN_FATAL_CODES | {"tunnel_revoked", "key_replaced"}
"""Error codes after which trying again cannot help; a person must act on the agent's host.

Not `agent_locked`: the agent's owner unlocks it elsewhere, and the agent goes on.
"""

Pem = Annotated[str, msgspec.Meta(max_length=8192, pattern=r"^[\t\n\r -~]*$")]
ShortText = Annotated[str, msgspec.Meta(max_length=255)]
Assertion = Annotated[str, msgspec.Meta(max_length=4096)]


class _Quiet(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A message whose fields, secrets among them, are not printed."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # msgspec's own would hand every field to a pretty printer of tracebacks.
        return []


class _Request(_Quiet, frozen=True, forbid_unknown_fields=True):
    pass


class EnrolRequest(_Request, frozen=True):
    """`POST /agent/v1/enrol`: a join code's parts, and what the agent made for itself."""

    tunnel_id: ShortText
    secret: ShortText
    csr_pem: Pem
    end_to_end_certificate_pem: Pem
    agent_version: ShortText = ""
    hostname: ShortText = ""
    replaces: ShortText = ""
    """The agent whose state is on this host."""
    replaces_key: ShortText = ""
    """The thumbprint of that agent's link key on this host.

    If the agent is locked and this is its newest key, the new agent takes its place. A host with an
    older key has a copy of the state and ends nothing.
    """


class EnrolResponse(_Quiet, frozen=True):
    """The agent's identity, and all it needs to connect. Times are Unix seconds."""

    agent_id: str
    certificate_pem: str
    relays: list[str]
    services_ca_pem: str
    owner: str
    server_time: int
    authentication_keys: list[str]
    token: str
    token_expires_at: int
    certificate_expires_at: int
    key_fingerprint: str
    gateway_ca_pem: str | None = None


class RenewRequest(_Request, frozen=True):
    """`POST /agent/v1/renew`: signed with the old link key, asking for the new one."""

    assertion: Assertion
    csr_pem: Pem
    end_to_end_certificate_pem: Pem | None = None
    instance: ShortText = ""
    hostname: ShortText = ""


class RenewResponse(_Quiet, frozen=True):
    """A new link certificate and a token bound to it."""

    certificate_pem: str
    services_ca_pem: str
    relays: list[str]
    certificate_expires_at: int
    server_time: int
    token: str
    token_expires_at: int


class TokenRequest(_Request, frozen=True):
    """`POST /agent/v1/token`."""

    assertion: Assertion
    instance: ShortText = ""
    """Which run of the agent's program asks: random at each start."""
    hostname: ShortText = ""


class OtherHost(msgspec.Struct, frozen=True, rename="camel"):
    """A host that runs with the same state as the agent that asks. Times are Unix seconds."""

    hostname: str
    since: int


class TokenResponse(_Quiet, frozen=True):
    """A new tunnel token, and what else may have changed."""

    token: str
    token_expires_at: int
    authentication_keys: list[str]
    relays: list[str]
    server_time: int
    registered_model: str | None = None
    """The name that the tunnel was registered with."""
    preferred_model: str | None = None
    """The model that the tunnel's owner prefers at it; None if they prefer none."""
    other_host: OtherHost | None = None
    """Another host that uses this agent's identity at the same time, if there is one."""


def decode_error(body: bytes) -> ApiError | None:
    """Read an error answer; None when it has another shape."""
    try:
        return msgspec.json.decode(body, type=ApiErrorBody).error
    except msgspec.MsgspecError:
        return None
