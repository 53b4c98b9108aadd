"""The gateway's own services certificate, with which it dials relays and agents.

Key and certificate are made anew at each start and live in memory only: there is nothing to
store, and nothing to steal from a disk.
"""

from typing import Final

from byoai_gateway.authorities import Authority, Subject
from byoai_gateway.clock import Clock
from byoai_shared.identity import GatewayIdentity
from byoai_shared.keys import key_to_pem, new_key
from byoai_shared.tls import Credentials

_LIFETIME_S: Final = 30 * 86_400.0
_RENEWED_AFTER_S: Final = _LIFETIME_S * 2 / 3


class OwnIdentity:
    """Credentials that are renewed in time; ask for them at each dial."""

    def __init__(self, name: str, authority: Authority, clock: Clock) -> None:
        self.identity = GatewayIdentity(name)
        self.services_ca_pem = authority.certificate_pem.encode("ascii")
        self._authority = authority
        self._clock = clock
        self._made_at = clock()
        self._credentials = self._make()

    @property
    def credentials(self) -> Credentials:
        """The certificate and key to dial with now."""
        return self._credentials

    def renew_if_due(self) -> None:
        """Make new ones when two thirds of the certificate's life are over."""
        if self._clock() - self._made_at >= _RENEWED_AFTER_S:
            self._made_at = self._clock()
            self._credentials = self._make()

    def _make(self) -> Credentials:
        key = new_key()
        subject = Subject(self.identity, key.public_key(), _LIFETIME_S)
        issued = self._authority.issue(subject, self._clock())
        return Credentials(issued.pem.encode("ascii"), key_to_pem(key))
