"""What can go wrong with a link as a whole, or with one stream of it.

LinkError
├── LinkRefused    the link could not be made, or the relay turned it away
├── LinkLost       it was made and is gone
├── TokenNotRenewed    a newer token was refused; the link lives on with the older one
└── StreamReset    one stream was aborted; the link lives
"""

from byoai_shared.errors import ByoaiError
from byoai_shared.protocol.errors import CloseCode, ResetCode


class LinkError(ByoaiError):
    """A link or one of its streams failed."""


class LinkRefused(LinkError):
    """No link came about."""

    def __init__(
        self,
        address: str,
        reason: str,
        code: CloseCode | None = None,
        *,
        is_over_certificate: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"link to {address} refused: {reason}")
        self.code = code
        """The relay's own word, when it got as far as saying one."""
        self.is_over_certificate = is_over_certificate
        """The TLS handshake ended as it does when a relay does not take our certificate."""
        self.retry_after_s = retry_after_s
        """How long the relay, or a proxy before it, asks to stay away."""


class LinkLost(LinkError):
    """A link that worked is gone, and all its streams with it."""

    def __init__(self, address: str, code: CloseCode | None, reason: str) -> None:
        name = code.name.lower() if code is not None else "closed without a word"
        super().__init__(f"link to {address} lost: {name}{f' ({reason})' if reason else ''}")
        self.code = code
        self.retry_after_s: float | None = None
        """How long the relay asked to stay away before it closed the link."""


class TokenNotRenewed(LinkError):
    """The relay refused a newer token; the link is good until the end of the older one."""

    def __init__(self, address: str, reason: str, accepted_until: int) -> None:
        super().__init__(f"{address} refused the renewed token: {reason}")
        self.reason = reason
        self.accepted_until = accepted_until
        """The end of the older token, in Unix seconds."""


class StreamReset(LinkError):
    """A stream was aborted. Only `ResetCode.NOT_PROCESSED` says that a retry is safe."""

    def __init__(self, code: ResetCode) -> None:
        super().__init__(f"stream reset: {code.name.lower().replace('_', ' ')}")
        self.code = code
