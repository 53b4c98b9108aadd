"""Servers as on the internet: with certificates of an authority that a test makes."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
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


@asynccontextmanager
async def speaking_plainly() -> AsyncGenerator[int]:
    """A server that answers a TLS handshake in plain HTTP; gives its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
