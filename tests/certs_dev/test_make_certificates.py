import socket
import ssl
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509

from byoai_shared.identity import (
    AgentIdentity,
    GatewayIdentity,
    RelayIdentity,
    certificate_identity,
    tunnel_hostname,
)
from byoai_shared.tls import Credentials, client_context, pinned_client_context, server_context
from demo.lifeline import run

SCRIPT = Path(__file__).parents[2] / "certs-dev" / "make_certificates.py"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certs") / "out"
    for _ in range(2):  # a second run replaces the first
        run([sys.executable, str(SCRIPT), "--out", str(directory), "--host", "relay.test"])
    return directory


def credentials(out: Path, name: str) -> Credentials:
    return Credentials((out / f"{name}.pem").read_bytes(), (out / f"{name}-key.pem").read_bytes())


def der(out: Path, name: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((out / f"{name}.pem").read_text())


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, hostname: str) -> bytes:
    """Return what the client read: proof that both sides took the other's certificate."""

    def serve(listener: socket.socket) -> None:
        raw, _ = listener.accept()
        raw.settimeout(50)
        with server.wrap_socket(raw, server_side=True) as session:
            session.sendall(b"welcome")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(50)
        served = pool.submit(serve, listener)
        with (
            socket.create_connection(listener.getsockname(), timeout=50) as raw,
            client.wrap_socket(raw, server_hostname=hostname) as session,
        ):
            answer = session.recv(100)
        served.result(timeout=50)
        return answer


def test_each_certificate_names_its_part(out: Path) -> None:
    assert certificate_identity(der(out, "relay")) == RelayIdentity("relay-dev")
    assert certificate_identity(der(out, "gateway")) == GatewayIdentity("gateway-dev")
    agent = certificate_identity(der(out, "agent"))
    assert isinstance(agent, AgentIdentity)


def test_the_end_to_end_certificate_bears_the_tunnels_host_name(out: Path) -> None:
    agent = certificate_identity(der(out, "agent"))
    assert isinstance(agent, AgentIdentity)
    certificate = x509.load_der_x509_certificate(der(out, "agent-end-to-end"))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = names.get_values_for_type(x509.DNSName)
    assert hosts == [tunnel_hostname(agent.tunnel_id)]


@pytest.mark.parametrize("hostname", ["localhost", "127.0.0.1", "relay.test"])
@pytest.mark.parametrize(("peer", "authority"), [("agent", "agents"), ("gateway", "services")])
def test_a_relay_and_its_peers_take_each_others_certificates(
    out: Path, peer: str, authority: str, hostname: str
) -> None:
    server = server_context(
        credentials(out, "relay"), client_ca_pem=(out / f"{authority}-ca.pem").read_bytes()
    )
    client = client_context(
        server_ca_pem=(out / "services-ca.pem").read_bytes(), credentials=credentials(out, peer)
    )
    assert handshake(server, client, hostname) == b"welcome"


def test_the_gateway_reaches_the_agent_by_its_pinned_certificate(out: Path) -> None:
    agent = certificate_identity(der(out, "agent"))
    assert isinstance(agent, AgentIdentity)
    end_to_end = credentials(out, "agent-end-to-end")
    server = server_context(
        end_to_end, client_ca_pem=(out / "services-ca.pem").read_bytes(), alpn=["http/1.1"]
    )
    client = pinned_client_context([end_to_end.certificate_pem], credentials(out, "gateway"))
    assert handshake(server, client, tunnel_hostname(agent.tunnel_id)) == b"welcome"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mode bits")
def test_nobody_else_may_read_what_it_writes(out: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}
    assert set(modes.values()) == {0o600}
    assert not [name for name in modes if "ca-key" in name]
