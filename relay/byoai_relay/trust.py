"""What the relay believes: the keys that sign tunnel tokens, and who is denied.

It learns this from gateways' links only, keeps it in memory only, and starts knowing nothing:
until the first snapshot came, every agent is asked to try again later.
"""

from typing import Final

import msgspec

from byoai_shared.protocol.control import Trust
from byoai_shared.protocol.errors import CloseCode, RemoteProtocolError
from byoai_shared.tokens import TokenRefused, TokenVerifier, TunnelClaims, keys_from_jwks

_NOTHING: Final = Trust(revision=0, issuer="-", audience="-")


class Believed(msgspec.Struct, frozen=True):
    """A token that was verified, and the key that signed it."""

    claims: TunnelClaims
    key_id: str


class TrustStore:
    """The newest snapshot, and what follows from it."""

    def __init__(self) -> None:
        self._trust = _NOTHING
        self._verifier: TokenVerifier | None = None
        self._key_ids: frozenset[str] = frozenset()
        self._denied_tunnels: frozenset[str] = frozenset()
        self._denied_certificates: frozenset[str] = frozenset()

    @property
    def is_known(self) -> bool:
        """Whether any gateway has spoken yet."""
        return self._verifier is not None

    @property
    def revision(self) -> int:
        """The snapshot's number."""
        return self._trust.revision

    def replace(self, trust: Trust) -> bool:
        """Believe a snapshot unless it is older than the one we have.

        Raises:
            RemoteProtocolError: its keys cannot be read.
        """
        if self._verifier is not None and trust.revision < self._trust.revision:
            return False
        try:
            keys = keys_from_jwks(trust.keys)
        except (ValueError, KeyError, TokenRefused) as error:
            raise RemoteProtocolError("TRUST with a key that cannot be read") from error
        self._trust = trust
        self._verifier = TokenVerifier(issuer=trust.issuer, audience=trust.audience, keys=keys)
        self._key_ids = frozenset(keys)
        self._denied_tunnels = frozenset(trust.denied_tunnels)
        self._denied_certificates = frozenset(trust.denied_certificates)
        return True

    def denies(self, tunnel_id: str, certificate_thumbprint: str) -> bool:
        """Whether this tunnel or this link certificate was revoked."""
        return (
            tunnel_id in self._denied_tunnels or certificate_thumbprint in self._denied_certificates
        )

    def still_trusts(self, key_id: str) -> bool:
        """Whether a key that once verified a token is still good."""
        return key_id in self._key_ids

    def verify(
        self, token: str, *, tunnel_id: str, certificate_thumbprint: str, now_unix: float
    ) -> Believed:
        """Check a token against the certificate it came with.

        Raises:
            RemoteProtocolError: with the close code that tells the agent what to do next. The
                sentence names the fault, never the token.
        """
        if self._verifier is None:
            raise RemoteProtocolError("no gateway has spoken yet", CloseCode.NOT_READY)
        if self.denies(tunnel_id, certificate_thumbprint):
            raise RemoteProtocolError("the tunnel was revoked", CloseCode.REVOKED)
        try:
            claims = self._verifier.verify(
                token, certificate_thumbprint=certificate_thumbprint, now=now_unix
            )
        except TokenRefused as refused:
            raise RemoteProtocolError(str(refused), CloseCode.TOKEN_REFUSED) from refused
        if claims.tunnel_id != tunnel_id:
            raise RemoteProtocolError("the token is for another tunnel", CloseCode.TOKEN_REFUSED)
        return Believed(claims, self._verifier.key_id(token))
