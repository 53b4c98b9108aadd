"""Servers as on the internet: with certificates of an authority that a test makes."""

import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme

from byoai_shared.tls import Credentials, replace_credentials


def trusted_authority(directory: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """An authority that this process' system trusts, as long as the patch lasts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(directory / "ca.pem"))
    return authority


def https(authority: trustme.CA, *names: str, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """The context of a server with these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made = authority.issue_cert(*names)
    chain = b"".join(pem.bytes() for pem in made.cert_chain_pems)
    replace_credentials(context, Credentials(chain, made.private_key_pem.bytes()))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context
