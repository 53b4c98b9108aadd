import asyncio
import json
import socket
import stat
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from byoai_gateway.cli import main
from byoai_gateway.clock import Clock
from byoai_gateway.config import DatabaseSection, UsersSection
from byoai_gateway.control_plane import open_control_plane
from byoai_gateway.users import User, Users
from byoai_shared.identity import RelayIdentity, certificate_identity
from byoai_shared.private_files import write_new_file
from byoai_shared.secret import Secret
from byoai_shared.tls import Credentials, server_context
from support.control import gateway_config, joined_agent
from support.provider import Provider
from support.provider_script import MODEL, refusal

SECRET = "a shared secret of thirty-two bytes or more"


@pytest.fixture
def settings(tmp_path: Path, database: DatabaseSection) -> Path:
    file = tmp_path / "gateway.toml"
    values = {
        "database.url": database.url,
        "vault.key_file": str(tmp_path / "vault.key"),
        "users.secret": SECRET,
        "listen.port": 0,
    }
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return file


@pytest.fixture
async def served(settings: Path, tmp_path: Path, database: DatabaseSection) -> Path:
    """Settings of a gateway that has been started once."""
    async with open_control_plane(gateway_config(tmp_path, database=database)):
        return settings


def run(settings: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--config", str(settings)])


async def whose(token: str, clock: Clock) -> User:
    users = Users(UsersSection(secret=Secret(SECRET)), None, clock)
    return await users.authenticate(f"Bearer {token}")


async def test_a_development_token_is_good(settings: Path, clock: Clock) -> None:
    result = run(settings, "dev-token", "--user", "alice", "--plan", "free")
    assert result.exit_code == 0
    assert await whose(result.stdout.strip(), clock) == User("alice", "free")


def test_without_a_shared_secret_no_token_is_minted(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('users.jwks_url = "https://app.example/jwks"\n')
    result = run(file, "dev-token", "--user", "alice")
    assert result.exit_code == 1
    assert "users.secret" in result.stderr


def test_a_relay_gets_all_it_needs_and_no_ca_key(served: Path, tmp_path: Path) -> None:
    out = tmp_path / "relay-1"
    hosts = ("--host", "127.0.0.1", "--host", "relay.example.com")
    result = run(served, "issue-relay-certificate", "relay-1", *hosts, "--out", str(out))
    assert result.exit_code == 0, result.output
    files = {path.name for path in out.iterdir()}
    assert files == {"relay.pem", "relay-key.pem", "agents-ca.pem", "services-ca.pem"}
    assert stat.S_IMODE((out / "relay-key.pem").stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate((out / "relay.pem").read_bytes())
    assert certificate_identity(certificate.public_bytes(Encoding.DER)) == RelayIdentity("relay-1")
    credentials = Credentials(
        (out / "relay.pem").read_bytes(), (out / "relay-key.pem").read_bytes()
    )
    server_context(credentials, client_ca_pem=(out / "agents-ca.pem").read_bytes())
    keys = [path for path in out.iterdir() if b"PRIVATE" in path.read_bytes()]
    assert [path.name for path in keys] == ["relay-key.pem"]


def test_a_relays_certificate_lives_a_week_at_most(served: Path, tmp_path: Path) -> None:
    arguments = ("issue-relay-certificate", "r", "--host", "127.0.0.1", "--out")
    assert run(served, *arguments, str(tmp_path / "r")).exit_code == 0
    certificate = x509.load_pem_x509_certificate((tmp_path / "r" / "relay.pem").read_bytes())
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=6.9) < left <= timedelta(days=7)
    assert run(served, *arguments, str(tmp_path / "s"), "--days", "8").exit_code == 2


def test_services_are_revoked_by_name_and_listed(served: Path) -> None:
    for service in ("relay", "gateway"):
        result = run(served, "certificates", "revoke", service, "one")
        assert result.exit_code == 0, result.output
        assert f"byoai://{service}/one" in result.stdout
    listed = run(served, "certificates", "list").stdout
    assert [line.split()[0] for line in listed.splitlines()] == [
        "byoai://gateway/one",
        "byoai://relay/one",
    ]
    faulty = run(served, "certificates", "revoke", "relay", "a/b")
    assert faulty.exit_code == 1
    assert "a name has 1 to 63 characters" in faulty.stderr


def test_a_relays_key_is_never_overwritten(served: Path, tmp_path: Path) -> None:
    arguments = (
        "issue-relay-certificate",
        "r",
        "--host",
        "127.0.0.1",
        "--out",
        str(tmp_path / "r"),
    )
    assert run(served, *arguments).exit_code == 0
    key = (tmp_path / "r" / "relay-key.pem").read_bytes()
    again = run(served, *arguments)
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert (tmp_path / "r" / "relay-key.pem").read_bytes() == key


def test_a_relays_key_without_its_certificate_is_not_left_behind(
    served: Path, tmp_path: Path
) -> None:
    """A disk that is full by then; the next attempt would say that there is one already."""
    out = tmp_path / "r"
    (out / "relay.pem").mkdir(parents=True)
    arguments = ("issue-relay-certificate", "r", "--host", "127.0.0.1", "--out", str(out))
    assert "cannot write to" in run(served, *arguments).stderr
    (out / "relay.pem").rmdir()
    assert run(served, *arguments).exit_code == 0


@pytest.mark.parametrize(("name", "host"), [("r", "é"), ("a/b", "127.0.0.1"), ("", "127.0.0.1")])
def test_a_faulty_name_or_host_is_refused_plainly(
    served: Path, tmp_path: Path, name: str, host: str
) -> None:
    out = tmp_path / "r"
    result = run(served, "issue-relay-certificate", name, "--host", host, "--out", str(out))
    assert result.exit_code == 1
    assert result.stderr.startswith("byoai-gateway: ")
    assert "Traceback" not in result.output
    assert not out.exists()


def test_a_relay_that_is_there_before_the_gateway_gets_its_certificate_too(
    settings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    arguments = ("issue-relay-certificate", "r", "--host", "127.0.0.1", "--out", str(out))
    refused = run(settings, *arguments)
    assert refused.exit_code == 1
    assert not out.exists()
    assert run(settings, *arguments, "--create").exit_code == 0
    assert (tmp_path / "vault.key").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["certificates", "list"],
        ["certificates", "revoke", "relay", "one"],
        ["keys", "list"],
        ["keys", "drop", "one"],
        ["keys", "rotate"],
        ["keys", "rotate", "--prepare"],
        ["keys", "forget", "one", "--yes"],
        ["issue-relay-certificate", "r", "--host", "127.0.0.1", "--out", "r"],
    ],
)
def test_in_another_folder_no_command_makes_a_gateway_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert str(tmp_path / "gateway.db") in result.stderr
    assert "--config" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_signing_key_is_listed_and_dropped(served: Path) -> None:
    listed = run(served, "keys", "list")
    (line,) = listed.stdout.splitlines()
    kid = line.split()[0]
    dropped = run(served, "keys", "drop", kid)
    assert dropped.exit_code == 0
    (after,) = run(served, "keys", "list").stdout.splitlines()
    assert after.split()[0] != kid
    again = run(served, "keys", "drop", kid)
    assert again.exit_code == 1
    assert after.split()[0] in again.stderr


def test_a_misspelt_setting_is_named(settings: Path) -> None:
    settings.write_text("listen.prot = 7\n")
    for command in (["serve"], ["keys", "list"], ["dev-token", "--user", "a"]):
        result = run(settings, *command)
        assert result.exit_code == 1
        assert "listen.prot" in result.stderr
        assert "listen.port" in result.stderr


def test_settings_prints_a_sample(settings: Path) -> None:
    result = CliRunner().invoke(main, ["settings"])
    assert result.exit_code == 0
    assert "[tunnels]" in result.stdout
    assert settings.exists()


def refusal_to_serve(settings: Path, more: str) -> str:
    settings.write_text(settings.read_text() + more)
    result = run(settings, "serve")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), "a sentence, no traceback"
    assert result.stderr.count("byoai-gateway: ") == 1
    return result.stderr


def test_a_taken_port_is_one_sentence(settings: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings.write_text(settings.read_text().replace("listen.port = 0\n", ""))
        assert str(port) in refusal_to_serve(settings, f"listen.port = {port}\n")


def test_a_certificate_that_is_missing_is_one_sentence(settings: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    more = f'listen.certificate = "{missing}"\nlisten.key = "{missing}"\n'
    assert str(missing) in refusal_to_serve(settings, more)


def test_a_certificate_that_is_none_is_one_sentence(settings: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    write_new_file(garbage, b"garbage")
    more = f'listen.certificate = "{garbage}"\nlisten.key = "{garbage}"\n'
    assert "PEM" in refusal_to_serve(settings, more)


@pytest.mark.parametrize(
    ("setting", "value", "complaint"),
    [
        ("default_provider.key", "sk-hidden\nx-more: 1", "default_provider.key"),
        ("default_provider.key", "Bearer sk-hidden", "default_provider.key"),
        ("default_provider.base_url", "https://llm.example /v1", "default_provider.base_url"),
        (
            "default_provider.base_url",
            "https://llm.example/v1/chat/completions",
            "write https://llm.example/v1\n",
        ),
        ("openrouter.base_url", "https://openrouter.ai/api/v1/models", "openrouter.base_url"),
        ("openrouter.title", "Our\nproduct", "openrouter.title"),
        ("openrouter.referer", "https://a.example\n", "openrouter.referer"),
        ("public.url", "https://a.example\n", "public.url"),
        ("gateway.name", "gateway-1\n", "gateway.name"),
        ("limits.store", "redis://:hidden@h ost:6379/0", "limits.store"),
        ("limits.store", "https://:hidden@host", "limits.store"),
        ("database.url", "sqlite+aiosqlite:///gateway.db\n", "database.url"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_wrong_value_is_refused_at_the_start_by_its_name(
    tmp_path: Path, command: str, setting: str, value: str, complaint: str
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"{setting} = {json.dumps(value)}\n")
    result = run(file, command)
    assert result.exit_code == 1
    assert setting in result.stderr
    assert complaint in result.stderr
    assert "hidden" not in result.output
    assert [it.name for it in tmp_path.iterdir()] == ["gateway.toml"]


@pytest.fixture
def checkable(
    settings: Path, monkeypatch: pytest.MonkeyPatch, default: Provider
) -> Callable[..., Awaitable[Result]]:
    """Run `check` with the default provider's settings from the environment."""

    async def check(*arguments: str, **values: str) -> Result:
        given = {"base_url": default.url, "key": "sk-hidden\n"} | values
        for name, value in given.items():
            monkeypatch.setenv(f"BYOAI_GATEWAY_DEFAULT_PROVIDER__{name.upper()}", value)
        monkeypatch.setenv("BYOAI_GATEWAY_OPENROUTER__BASE_URL", default.url)
        return await asyncio.to_thread(run, settings, "check", *arguments)

    return check


async def test_a_check_of_what_works_says_so(
    checkable: Callable[..., Awaitable[Result]], default: Provider
) -> None:
    result = await checkable(model=MODEL)
    assert result.exit_code == 0, result.output
    for setting in ("base_url", "model"):
        assert f"ok       default_provider.{setting}: " in result.stdout
    assert "warning  relays: no agent can be reached" in result.stdout
    keys = {it.headers.get("authorization") for it in default.requests}
    assert keys == {None, "Bearer sk-hidden"}, "the line break after the key is not the key's"
    assert "hidden" not in result.output


async def test_a_check_of_what_does_not_work_fails_and_names_the_setting(
    checkable: Callable[..., Awaitable[Result]], default: Provider
) -> None:
    result = await checkable("--json", model="other")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["ok"] is False
    (wrong,) = [it for it in report["findings"] if it["status"] == "failed"]
    assert wrong["setting"] == "default_provider.model"
    assert MODEL in wrong["fix"]
    assert wrong["durationMs"] >= 0
    default.always(refusal(401))
    result = await checkable()
    assert result.exit_code == 1
    assert "failed   default_provider.key: the provider refuses the key (401)" in result.stdout
    assert "hidden" not in result.output


async def test_a_check_for_programs_names_a_wrong_setting_too(
    checkable: Callable[..., Awaitable[Result]], default: Provider
) -> None:
    result = await checkable("--json", base_url=f"{default.url}/chat/completions")
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)["findings"]
    assert (finding["setting"], finding["status"]) == ("default_provider.base_url", "failed")
    assert finding["message"].endswith(f"write {default.url}")
    assert default.requests == []


def test_what_cannot_work_as_it_is_set_is_warned_of(settings: Path, tmp_path: Path) -> None:
    """The defaults start a gateway that answers nobody; without a word it looks ready."""
    settings.write_text(settings.read_text().replace("users.secret", "tokens.audience"))
    missing = tmp_path / "missing.pem"
    said = refusal_to_serve(
        settings, f'listen.certificate = "{missing}"\nlisten.key = "{missing}"\n'
    )
    assert "users.secret_file or users.jwks_url" in said
    assert "[[relays]]" in said
    assert "default_provider.base_url" in said


def test_an_address_without_a_version_is_warned_of(settings: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    said = refusal_to_serve(
        settings,
        'default_provider.base_url = "https://llm.example"\n'
        f'listen.certificate = "{missing}"\nlisten.key = "{missing}"\n',
    )
    assert "provider.unversioned" in said
    assert "https://llm.example/v1" in said


async def test_the_operator_revokes_by_name_or_since_a_time(
    served: Path, tmp_path: Path, database: DatabaseSection
) -> None:
    async with open_control_plane(gateway_config(tmp_path, database=database)) as control:
        agent = await joined_agent(control)
    listed = await asyncio.to_thread(run, served, "revoke", "--since", "2020-01-01T00:00")
    assert listed.exit_code == 1
    assert listed.stdout == f"would revoke {agent.tunnel_id}\n"
    assert "--yes" in listed.stderr
    later = await asyncio.to_thread(run, served, "revoke", "--since", "2100-01-01T00:00", "--yes")
    assert (later.exit_code, later.stdout) == (0, "")
    for expected in (f"revoked {agent.tunnel_id}\n", f"not active: {agent.tunnel_id}\n"):
        result = await asyncio.to_thread(run, served, "revoke", agent.tunnel_id, "--yes")
        assert (result.exit_code, result.stdout) == (0, expected)
    assert (await asyncio.to_thread(run, served, "revoke")).exit_code == 2
