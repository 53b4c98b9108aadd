"""Writes what a relay needs to be one: its key and certificate, and the CAs it trusts.

Only the services CA signs relays, and no CA key leaves the gateway.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from byoai_gateway.authorities import Authorities, Subject, host_name
from byoai_shared.errors import ConfigError
from byoai_shared.identity import RelayIdentity
from byoai_shared.keys import key_to_pem, new_key
from byoai_shared.private_files import write_new_file

CERTIFICATE: Final = "relay.pem"
KEY: Final = "relay-key.pem"
AGENTS_CA: Final = "agents-ca.pem"
SERVICES_CA: Final = "services-ca.pem"


def write_relay_certificate(
    authorities: Authorities, subject: Subject, key_pem: bytes, directory: Path, now: float
) -> int:
    """Sign a relay's certificate and write its four files; answers when it expires.

    The key file comes first and must not exist: a key in use is never overwritten.

    Raises:
        ConfigError: a file cannot be written.
    """
    issued = authorities.services.issue(subject, now)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new_file(directory / KEY, key_pem)
        (directory / CERTIFICATE).write_text(issued.pem)
        (directory / AGENTS_CA).write_text(authorities.agents.certificate_pem)
        (directory / SERVICES_CA).write_text(authorities.services.certificate_pem)
    except FileExistsError as error:
        raise ConfigError(
            f"{directory / KEY} exists already; move it away or give another --out"
        ) from error
    except OSError as error:
        with suppress(OSError):  # it would stand in the way of the next attempt
            (directory / KEY).unlink()
        raise ConfigError(f"cannot write to {directory}: {error.strerror}") from error
    return issued.expires_at


def relay_subject(name: str, hosts: Sequence[str], lifetime_s: float) -> tuple[Subject, bytes]:
    """Make a relay's key, and say for whom its certificate is.

    Raises:
        ConfigError: a host is neither an address nor a DNS name.
    """
    for host in hosts:
        host_name(host)
    key = new_key()
    subject = Subject(RelayIdentity(name), key.public_key(), lifetime_s, tuple(hosts))
    return subject, key_to_pem(key)
