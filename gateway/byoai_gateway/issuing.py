"""Makes what agents prove themselves with: link certificates, and tokens bound to them."""

import secrets as random
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from byoai_gateway.authorities import Authority, Issued, Subject
from byoai_gateway.config import GatewayConfig
from byoai_gateway.signing import SigningKeys
from byoai_shared.identity import AgentIdentity
from byoai_shared.tokens import TunnelClaims


@dataclass(frozen=True, slots=True)
class Token:
    """A signed tunnel token and its life, Unix seconds."""

    text: str
    issued_at: int
    expires_at: int

    def __repr__(self) -> str:
        return f"Token(***, expires_at={self.expires_at})"


class Issuer:
    """The agents' CA and the signing keys, with the configured lifetimes."""

    def __init__(
        self, authority: Authority, signing_keys: SigningKeys, config: GatewayConfig
    ) -> None:
        self._authority = authority
        self._signing_keys = signing_keys
        self._lifetimes = config.tunnels
        self._profile = config.tokens

    def certificate(
        self, identity: AgentIdentity, key: ec.EllipticCurvePublicKey, now: float
    ) -> Issued:
        """Sign a link certificate for an agent's key."""
        subject = Subject(identity, key, self._lifetimes.certificate_lifetime_s)
        return self._authority.issue(subject, now)

    def token(self, identity: AgentIdentity, thumbprint: str, generation: int, now: float) -> Token:
        """Sign a token that is good with the certificate of that thumbprint only."""
        expires_at = int(now + self._lifetimes.token_lifetime_s)
        claims = TunnelClaims(
            issuer=self._profile.issuer,
            audience=self._profile.audience,
            tunnel_id=identity.tunnel_id,
            issued_at=int(now),
            not_before=int(now),
            expires_at=expires_at,
            token_id=random.token_urlsafe(16),
            certificate_thumbprint=thumbprint,
            generation=generation,
        )
        return Token(self._signing_keys.sign(claims), int(now), expires_at)
