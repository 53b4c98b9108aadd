"""What an operator reads when the settings are wrong: one sentence, and what to do."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from byoai_relay.cli import main
from support.authority import Authority, write_relay_files
from support.links import RELAY, certificates

FILES = {
    "certificate": "relay.pem",
    "key": "relay-key.pem",
    "agents_ca": "agents-ca.pem",
    "services_ca": "services-ca.pem",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    made = certificates()
    write_relay_files(tmp_path, made.relay, agents=made.agents, services=made.services)
    return tmp_path


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port: int = other.getsockname()[1]
        yield port


def serve(files: Path, settings: str = "") -> Result:
    lines = [f'identity.{name} = "{files / file}"\n' for name, file in FILES.items()]
    for listener in ("agents", "gateways", "ops"):
        lines += [f'{listener}.host = "127.0.0.1"\n'] * (f"{listener}.host" not in settings)
        lines += [f"{listener}.port = 0\n"] * (f"{listener}.port" not in settings)
    config = files / "relay.toml"
    config.write_text("".join(lines) + settings)
    result = CliRunner().invoke(main, ["serve", "--config", str(config)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), "a sentence, no traceback"
    return result


@pytest.mark.parametrize(
    "setting",
    [
        'log.level = "loud"',
        "drain_s = -1",
        "limits.streams_per_tunnel = -1",
        "limits.early_resets_per_s = -1",
        "limits.early_resets_burst = -1",
        "limits.frames_per_s = 99",
        "limits.connections = 63",
        "limits.connections = 1000001",
        "limits.address_connections = 3",
        "limits.address_links = 3",
        "limits.proxy_connections = 3",
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_name(files: Path, setting: str) -> None:
    assert f"`{setting.partition(' ')[0]}`" in serve(files, setting).stderr


def test_a_network_that_is_none_is_named_with_an_example(files: Path) -> None:
    said = serve(files, 'limits.trusted_proxies = ["10.0.0.1/8"]').stderr
    assert "`limits`" in said
    assert "trusted_proxies: 10.0.0.1/8 has host bits set; write 10.0.0.0/8" in said


@pytest.mark.parametrize("listener", ["agents", "gateways", "ops"])
def test_a_taken_port_is_named_with_its_listener(files: Path, taken: int, listener: str) -> None:
    said = serve(files, f"{listener}.port = {taken}").stderr
    assert f"port {taken}: Address already in use" in said
    assert f"[{listener}]" in said


def test_an_unknown_host_is_named_with_its_listener(files: Path) -> None:
    said = serve(files, 'agents.host = "no.such.host.invalid"').stderr
    assert "no.such.host.invalid" in said
    assert "[agents]" in said


@pytest.mark.parametrize("file", FILES.values())
def test_a_file_that_is_no_pem_is_named_with_what_to_do(files: Path, file: str) -> None:
    (files / file).write_text("garbage")
    said = serve(files).stderr
    assert str(files / file) in said
    assert "issue-relay-certificate" in said


def test_a_key_of_another_certificate_is_said_plainly(files: Path) -> None:
    other = Authority("other").credentials(RELAY)
    (files / "relay-key.pem").write_bytes(other.key_pem)
    said = serve(files).stderr
    assert "do not belong together" in said
    assert str(files / "relay-key.pem") in said
