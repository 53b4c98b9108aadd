"""Why an agent went, as gateways are told. Pure."""

from byoai_shared.protocol.control import GoneReason
from byoai_shared.protocol.errors import CloseCode


def reason_of_close(code: CloseCode) -> GoneReason:
    """Return the reason for a link that the relay closes with `code`."""
    match code:
        case CloseCode.IDLE:
            return GoneReason.NETWORK_LOST
        case CloseCode.TOKEN_EXPIRED:
            return GoneReason.TOKEN_EXPIRED
        case CloseCode.REVOKED:
            return GoneReason.REVOKED
        case CloseCode.REPLACED:
            return GoneReason.REPLACED
        case CloseCode.GOING_AWAY:
            return GoneReason.DRAINED
        case _:
            return GoneReason.REFUSED


def reason_of_end(code: int | None) -> GoneReason:
    """Return the reason for a link that the agent, or the network, ended with `code`."""
    said_so = code in {CloseCode.NORMAL, CloseCode.GOING_AWAY}
    return GoneReason.STOPPED if said_so else GoneReason.NETWORK_LOST
