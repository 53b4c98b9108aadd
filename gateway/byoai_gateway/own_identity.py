"""The gateway's own services certificate, with which it dials relays and agents.

Key and certificate are made at each start and live in memory only: there is nothing to store, and
nothing to steal from a disk. They are replaced when half of the certificate's life is over, and at
once when it was revoked.
"""

import ssl
from collections.abc import Callable

from byoai_gateway.authorities import Authority, Subject
from byoai_gateway.clock import Clock
from byoai_shared.certificate_life import CertificateLife, read_life
from byoai_shared.identity import GatewayIdentity
from byoai_shared.keys import key_to_pem, new_key
from byoai_shared.tls import Credentials, client_context


class OwnIdentity:
    """Credentials that are renewed in time; ask for them at each dial."""

    def __init__(
        self,
        name: str,
        authority: Authority,
        lifetime_s: float,
        clock: Clock,
        *,
        is_revoked: Callable[[bytes], bool],
    ) -> None:
        self.identity = GatewayIdentity(name)
        self.services_ca_pem = authority.certificate_pem.encode("ascii")
        self._authority = authority
        self._clock = clock
        self._lifetime_s = lifetime_s
        self._is_revoked = is_revoked
        self._credentials = self._make()

    @property
    def credentials(self) -> Credentials:
        """The certificate and key to dial with now."""
        return self._credentials

    @property
    def life(self) -> CertificateLife:
        """The times of the certificate."""
        return read_life(self._der)

    def dialing_context(self) -> ssl.SSLContext:
        """Make the context to dial a relay with, after replacing a certificate that is due.

        A relay hears of our certificate's revocation from ourselves, and a dial with it is in vain.
        """
        self.renew_if_due()
        return client_context(server_ca_pem=self.services_ca_pem, credentials=self._credentials)

    def renew_if_due(self) -> None:
        """Make new ones when half of the certificate's life is over, or when it was revoked."""
        if self._clock() >= self.life.renew_at or self._is_revoked(self._der):
            self._credentials = self._make()

    @property
    def _der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self._credentials.certificate_pem.decode("ascii"))

    def _make(self) -> Credentials:
        key = new_key()
        subject = Subject(self.identity, key.public_key(), self._lifetime_s)
        issued = self._authority.issue(subject, self._clock())
        return Credentials(issued.pem.encode("ascii"), key_to_pem(key))
