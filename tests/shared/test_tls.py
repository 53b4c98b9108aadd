"""TLS contexts over real loopback sockets."""

import errno
import os
import socket
import ssl
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from byoai_shared import tls
from byoai_shared.errors import ByoaiError, ConfigError
from byoai_shared.identity import new_tunnel_id, tunnel_hostname
from byoai_shared.keys import (
    KeyFormatError,
    key_from_pem,
    key_to_pem,
    new_key,
    self_signed_certificate,
)
from byoai_shared.tls import (
    Credentials,
    client_context,
    peer_refused_us,
    pinned_client_context,
    replace_credentials,
    server_context,
)
from byoai_shared.tls_errors import handshake_error

WAIT_S = 25.0


@dataclass(frozen=True, slots=True)
class Meeting:
    """How a connection went for both sides."""

    server_error: OSError | None
    client_error: OSError | None
    answer: bytes = b""
    version: str | None = None
    alpn: str | None = None
    server_certificate: bytes | None = None
    has_ticket: bool = False

    @property
    def is_refused(self) -> bool:
        return self.answer == b"" and (self.server_error or self.client_error) is not None


def _serve(listener: socket.socket, context: ssl.SSLContext) -> OSError | None:
    raw, _ = listener.accept()
    raw.settimeout(WAIT_S)
    with context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False) as session:
        try:
            session.do_handshake()
            session.sendall(b"welcome")
            session.recv(100)
        except OSError as error:
            _part(session)
            return error
    return None


def _part(session: ssl.SSLSocket) -> None:
    """Close only after the peer did: unread bytes would turn our alert into a reset."""
    with suppress(OSError):
        session.shutdown(socket.SHUT_WR)
        while session.recv(4096):
            pass


def meet(
    server: ssl.SSLContext, client: ssl.SSLContext, hostname: str | None = "localhost"
) -> Meeting:
    """Connect once, read what the server says, and report."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(WAIT_S)
        served = pool.submit(_serve, listener, server)
        with socket.create_connection(listener.getsockname(), timeout=WAIT_S) as raw:
            try:
                with client.wrap_socket(raw, server_hostname=hostname) as session:
                    answer = session.recv(100)
                    ticket = session.session is not None and session.session.has_ticket
                    met = Meeting(
                        server_error=None,
                        client_error=None,
                        answer=answer,
                        version=session.version(),
                        alpn=session.selected_alpn_protocol(),
                        server_certificate=session.getpeercert(binary_form=True),
                        has_ticket=ticket,
                    )
            except OSError as error:
                met = Meeting(server_error=None, client_error=error)
        served_error = served.result(timeout=2 * WAIT_S)
    if met.answer:
        return met
    return Meeting(server_error=served_error, client_error=met.client_error)


def credentials(leaf: trustme.LeafCert) -> Credentials:
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    return Credentials(chain, leaf.private_key_pem.bytes())


CA = trustme.CA(organization_name="ours")
FOREIGN_CA = trustme.CA(organization_name="foreign")
CA_PEM = CA.cert_pem.bytes()
SERVER = credentials(CA.issue_cert("localhost"))
CLIENT = credentials(CA.issue_cert("client"))


def mutual_server(client_ca_pem: bytes | None = CA_PEM) -> ssl.SSLContext:
    return server_context(SERVER, client_ca_pem=client_ca_pem)


def our_client(own: Credentials | None = CLIENT) -> ssl.SSLContext:
    return client_context(server_ca_pem=CA_PEM, credentials=own)


def bare_client(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = version
    context.load_verify_locations(cadata=CA_PEM.decode())
    return context


# -- what is spoken


def test_both_sides_agree_on_tls_1_3() -> None:
    met = meet(mutual_server(), our_client())
    assert (met.answer, met.version) == (b"welcome", "TLSv1.3")


def test_a_server_refuses_tls_1_2() -> None:
    met = meet(server_context(SERVER, client_ca_pem=None), bare_client(ssl.TLSVersion.TLSv1_2))
    assert met.is_refused
    assert isinstance(met.server_error, ssl.SSLError)
    assert met.server_error.reason == "UNSUPPORTED_PROTOCOL"


def test_a_client_refuses_tls_1_2() -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    replace_credentials(old, SERVER)
    met = meet(old, our_client(None))
    assert met.is_refused
    assert isinstance(met.client_error, ssl.SSLError)


def test_alpn_is_agreed_on() -> None:
    server = server_context(SERVER, client_ca_pem=None, alpn=["http/1.1"])
    client = client_context(server_ca_pem=CA_PEM, alpn=["h2", "http/1.1"])
    assert meet(server, client).alpn == "http/1.1"


def test_without_alpn_none_is_spoken() -> None:
    assert meet(mutual_server(), our_client()).alpn is None


# -- who is let in


def test_a_server_refuses_a_client_without_a_certificate() -> None:
    met = meet(mutual_server(), our_client(None))
    assert met.is_refused
    assert isinstance(met.server_error, ssl.SSLError)
    assert met.server_error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"


def test_a_server_refuses_a_client_of_a_foreign_authority() -> None:
    stranger = credentials(FOREIGN_CA.issue_cert("client"))
    met = meet(mutual_server(), our_client(stranger))
    assert met.is_refused
    assert isinstance(met.server_error, ssl.SSLCertVerificationError)


def test_a_server_refuses_an_expired_client() -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    expired = credentials(CA.issue_cert("client", not_after=yesterday))
    met = meet(mutual_server(), our_client(expired))
    assert met.is_refused
    assert isinstance(met.server_error, ssl.SSLCertVerificationError)
    assert met.server_error.verify_message == "certificate has expired"


def test_a_server_refuses_a_client_that_signed_itself() -> None:
    key = new_key()
    own = Credentials(self_signed_certificate(key, "client", timedelta(days=1)), key_to_pem(key))
    assert meet(mutual_server(), our_client(own)).is_refused


def test_a_server_without_a_client_authority_asks_for_no_certificate() -> None:
    met = meet(server_context(SERVER, client_ca_pem=None), our_client(None))
    assert met.answer == b"welcome"


def test_a_client_refuses_a_server_of_a_foreign_authority() -> None:
    foreign = server_context(credentials(FOREIGN_CA.issue_cert("localhost")), client_ca_pem=None)
    met = meet(foreign, our_client())
    assert met.is_refused
    assert isinstance(met.client_error, ssl.SSLCertVerificationError)


def test_a_client_refuses_a_server_of_another_name() -> None:
    met = meet(mutual_server(), our_client(), hostname="relay.example")
    assert met.is_refused
    assert isinstance(met.client_error, ssl.SSLCertVerificationError)


def test_a_common_name_is_no_host_name() -> None:
    leaf = credentials(CA.issue_cert("other.example", common_name="localhost"))
    met = meet(server_context(leaf, client_ca_pem=None), our_client())
    assert isinstance(met.client_error, ssl.SSLCertVerificationError)


def test_a_client_may_leave_the_name_to_its_caller_but_never_the_authority() -> None:
    context = client_context(server_ca_pem=CA_PEM, check_hostname=False)
    server = server_context(SERVER, client_ca_pem=None)
    assert meet(server, context, "relay.example").answer == b"welcome"
    foreign = credentials(FOREIGN_CA.issue_cert("localhost"))
    assert meet(server_context(foreign, client_ca_pem=None), context).is_refused


def test_an_intermediate_can_be_trusted_without_its_root() -> None:
    child = CA.create_child_ca()
    leaf = child.issue_cert("client")
    only_leaf = Credentials(leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes())
    server = mutual_server(child.cert_pem.bytes())
    assert meet(server, our_client(only_leaf)).answer == b"welcome"
    assert meet(server, our_client(CLIENT)).is_refused


def test_the_system_is_trusted_only_when_nothing_else_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    system = tmp_path / "system.pem"
    system.write_bytes(FOREIGN_CA.cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    server = server_context(credentials(FOREIGN_CA.issue_cert("localhost")), client_ca_pem=None)
    assert meet(server, client_context(server_ca_pem=None)).answer == b"welcome"
    assert meet(server, our_client()).is_refused


# -- what is left behind


def test_a_key_log_asked_for_by_the_environment_is_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    server, client = mutual_server(), our_client()
    pinned = pinned_client_context([SERVER.certificate_pem], CLIENT)
    assert meet(server, client).answer == b"welcome"
    assert meet(server, pinned).answer == b"welcome"
    assert not log.exists()


def test_a_server_hands_out_no_tickets() -> None:
    server = mutual_server()
    assert server.num_tickets == 0
    assert not meet(server, our_client()).has_ticket


def test_tickets_would_be_seen_if_there_were_any() -> None:
    lax = mutual_server()
    lax.num_tickets = 2
    assert meet(lax, our_client()).has_ticket


def no_files_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_name: str) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)


@pytest.mark.skipif(sys.platform != "linux", reason="files in memory are Linux's")
def test_a_key_is_loaded_from_memory_and_not_from_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it encrypted for that, which takes longer than the rest of a context."""

    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("a key was encrypted, or written to a disk")

    monkeypatch.setattr(tempfile, "mkstemp", unwanted)
    monkeypatch.setattr(tls, "BestAvailableEncryption", unwanted)
    assert meet(mutual_server(), our_client()).answer == b"welcome"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_where_files_in_memory_have_no_name_a_disk_is_used(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A container may have no /proc."""
    load, names = ssl.SSLContext.load_cert_chain, list[str]()

    def no_proc(context: ssl.SSLContext, name: str, **named: bytes) -> None:
        names.append(name)
        if name.startswith("/proc/"):
            raise OSError(number, os.strerror(number))
        load(context, name, **named)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", no_proc)
    server, client = mutual_server(), our_client()
    assert not names[-1].startswith("/proc/")
    assert meet(server, client).answer == b"welcome"


def test_where_python_knows_no_files_in_memory_a_disk_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Python that was built for a C library older than glibc 2.27 has no such function."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert meet(mutual_server(), our_client()).answer == b"welcome"


def test_no_key_is_on_disk_in_clear_while_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a SIGKILL at this moment would leave behind is of no use to anyone."""
    no_files_in_memory(monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left: list[tuple[bytes, int]] = []

    class Watched(ssl.SSLContext):
        def load_cert_chain(self, certfile: str, *arguments: object, **named: object) -> None:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride] # looks on only
            (file,) = tmp_path.iterdir()
            assert str(file) == certfile
            left.append((file.read_bytes(), file.stat().st_mode & 0o777))

    replace_credentials(Watched(ssl.PROTOCOL_TLS_SERVER), SERVER)
    ((content, mode),) = left
    assert sys.platform == "win32" or mode == 0o600
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in content
    assert b"BEGIN PRIVATE KEY" not in content
    with pytest.raises(KeyFormatError):
        key_from_pem(content)
    assert not list(tmp_path.iterdir())


def test_each_loading_has_a_passphrase_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_files_in_memory(monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    passphrases: list[bytes] = []

    class Watched(ssl.SSLContext):
        def load_cert_chain(self, certfile: str, *arguments: object, **named: object) -> None:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride] # looks on only
            passphrase = named["password"]
            assert isinstance(passphrase, bytes)
            passphrases.append(passphrase)
            load_pem_private_key(Path(certfile).read_bytes(), passphrase)

    for _ in range(2):
        replace_credentials(Watched(ssl.PROTOCOL_TLS_SERVER), SERVER)
    assert len(set(passphrases)) == 2


def test_nothing_is_left_on_disk_when_loading_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_files_in_memory(monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ConfigError):
        server_context(Credentials(b"no certificate", SERVER.key_pem), client_ca_pem=None)
    assert not list(tmp_path.iterdir())


def no_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkstemp", full)


@pytest.mark.skipif(sys.platform != "linux", reason="files in memory are Linux's")
def test_a_full_disk_keeps_no_credentials_from_being_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_temporary_files(monkeypatch)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    meet(mutual_server(), our_client())
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_where_no_file_can_be_made_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    no_temporary_files(monkeypatch)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ByoaiError, match=r"No space left on device.*check the disk") as failed:
        mutual_server()
    assert not isinstance(failed.value, ConfigError)  # after which no program is started again


def test_credentials_do_not_show_their_key() -> None:
    assert "PRIVATE" not in repr(SERVER)


# -- pins

TUNNEL_HOST = tunnel_hostname(new_tunnel_id())


def end_to_end(hostname: str = TUNNEL_HOST, days: float = 7) -> Credentials:
    key = new_key()
    return Credentials(
        self_signed_certificate(key, hostname, timedelta(days=days)), key_to_pem(key)
    )


AGENT = end_to_end()


def agent_server(own: Credentials = AGENT) -> ssl.SSLContext:
    return server_context(own, client_ca_pem=CA_PEM, alpn=["http/1.1"])


def test_a_pinned_certificate_is_trusted() -> None:
    met = meet(agent_server(), pinned_client_context([AGENT.certificate_pem], CLIENT), TUNNEL_HOST)
    assert (met.answer, met.alpn) == (b"welcome", "http/1.1")


def test_each_of_several_pins_is_trusted() -> None:
    second = end_to_end()
    client = pinned_client_context([AGENT.certificate_pem, second.certificate_pem], CLIENT)
    assert meet(agent_server(), client, TUNNEL_HOST).answer == b"welcome"
    assert meet(agent_server(second), client, TUNNEL_HOST).answer == b"welcome"


def test_another_certificate_of_the_same_host_is_refused() -> None:
    client = pinned_client_context([AGENT.certificate_pem], CLIENT)
    met = meet(agent_server(end_to_end()), client, TUNNEL_HOST)
    assert isinstance(met.client_error, ssl.SSLCertVerificationError)


def test_an_authoritys_certificate_of_the_same_host_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    system = tmp_path / "system.pem"
    system.write_bytes(CA_PEM)
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    client = pinned_client_context([AGENT.certificate_pem], CLIENT)
    impostor = agent_server(credentials(CA.issue_cert(TUNNEL_HOST)))
    met = meet(impostor, client, TUNNEL_HOST)
    assert isinstance(met.client_error, ssl.SSLCertVerificationError)


def test_a_pinned_context_knows_its_pins_only() -> None:
    client = pinned_client_context([AGENT.certificate_pem], CLIENT)
    assert client.cert_store_stats()["x509"] == 1


def test_a_pinned_key_signs_for_nobody_else() -> None:
    """The pin is no authority: what its key signs is not trusted."""
    key = key_from_pem(AGENT.key_pem)
    forged = Credentials(
        self_signed_certificate(key, "other.tunnel.internal", timedelta(days=1)), AGENT.key_pem
    )
    client = pinned_client_context([AGENT.certificate_pem], CLIENT)
    assert meet(agent_server(forged), client, "other.tunnel.internal").is_refused


def test_a_pinned_certificate_of_another_tunnel_is_refused() -> None:
    client = pinned_client_context([AGENT.certificate_pem], CLIENT)
    met = meet(agent_server(), client, tunnel_hostname(new_tunnel_id()))
    assert isinstance(met.client_error, ssl.SSLCertVerificationError)


def test_an_expired_pin_is_refused() -> None:
    expired = end_to_end(days=-0.5)
    client = pinned_client_context([expired.certificate_pem], CLIENT)
    assert meet(agent_server(expired), client, TUNNEL_HOST).is_refused


def test_no_pins_is_an_error_and_not_no_check() -> None:
    with pytest.raises(ConfigError):
        pinned_client_context([], CLIENT)


# -- replacing, and telling what is wrong


def test_new_credentials_serve_the_next_connection() -> None:
    server, client = mutual_server(), our_client()
    first = meet(server, client).server_certificate
    renewed = credentials(CA.issue_cert("localhost"))
    replace_credentials(server, renewed)
    second = meet(server, client).server_certificate
    assert first == ssl.PEM_cert_to_DER_cert(_leaf(SERVER))
    assert second == ssl.PEM_cert_to_DER_cert(_leaf(renewed))


def _leaf(own: Credentials) -> str:
    end = "-----END CERTIFICATE-----"
    return own.certificate_pem.decode().partition(end)[0] + end + "\n"


def encrypted(key_pem: bytes) -> bytes:
    return key_from_pem(key_pem).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )


@pytest.mark.parametrize(
    "broken",
    [
        Credentials(SERVER.certificate_pem, CLIENT.key_pem),
        Credentials(b"", SERVER.key_pem),
        Credentials(SERVER.certificate_pem, b""),
        Credentials(SERVER.certificate_pem, encrypted(SERVER.key_pem)),
    ],
    ids=["other key", "no certificate", "no key", "encrypted key"],
)
def test_credentials_that_cannot_be_used_are_told_so(broken: Credentials) -> None:
    with pytest.raises(ConfigError, match="certificate and its key cannot be used") as refused:
        server_context(broken, client_ca_pem=None)
    assert "BEGIN" not in str(refused.value)


@pytest.mark.parametrize("authority", [b"", b"not PEM", b"\xff"])
def test_an_authority_that_cannot_be_read_is_told_so(authority: bytes) -> None:
    with pytest.raises(ConfigError, match="CA certificates"):
        mutual_server(authority)
    with pytest.raises(ConfigError, match="CA certificates"):
        client_context(server_ca_pem=authority)


def test_a_late_refusal_of_our_certificate_is_recognised() -> None:
    met = meet(mutual_server(), our_client(None))
    assert isinstance(met.client_error, ssl.SSLError)
    assert peer_refused_us(met.client_error)
    assert peer_refused_us(handshake_error(met.client_error))


@pytest.mark.parametrize(
    "own",
    [
        credentials(FOREIGN_CA.issue_cert("client")),
        credentials(CA.issue_cert("client", not_after=datetime.now(UTC) - timedelta(days=1))),
    ],
    ids=["foreign", "expired"],
)
def test_every_kind_of_refusal_is_recognised(own: Credentials) -> None:
    met = meet(mutual_server(), our_client(own))
    assert met.client_error is not None
    assert peer_refused_us(met.client_error)


def test_a_refusal_is_found_behind_what_it_caused() -> None:
    met = meet(mutual_server(), our_client(None))
    wrapped = ByoaiError("connecting failed")
    wrapped.__cause__ = met.client_error
    assert peer_refused_us(wrapped)


def test_other_errors_are_no_refusal() -> None:
    foreign = server_context(credentials(FOREIGN_CA.issue_cert("localhost")), client_ca_pem=None)
    met = meet(foreign, our_client())
    assert met.client_error is not None
    assert not peer_refused_us(met.client_error)
    assert not peer_refused_us(ConnectionResetError())
    assert not peer_refused_us(ssl.SSLError(1, "something else"))
