import tomllib
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest

from byoai_gateway import config as module
from byoai_gateway.config import (
    PREFIX,
    DatabaseSection,
    GatewayConfig,
    RelaySection,
)
from byoai_gateway.config_check import check
from byoai_gateway.config_section import Section
from byoai_shared.config import describe, load
from byoai_shared.errors import ConfigError
from byoai_shared.secret import Secret

SECTIONS = [
    value
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Section) and value is not Section
]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_described(section: type[Section]) -> None:
    for name, hint in get_type_hints(section, include_extras=True).items():
        metas = [it for it in getattr(hint, "__metadata__", ()) if isinstance(it, msgspec.Meta)]
        assert any(meta.description for meta in metas), f"{section.__name__}.{name}"
        if name.endswith("_s"):
            assert any((meta.extra or {}).get("unit") == "s" for meta in metas), name


def test_the_sample_is_toml() -> None:
    text = describe(GatewayConfig)
    assert "[listen]" in text
    # Required fields of [[relays]] have no value to show.
    tomllib.loads("\n".join(line for line in text.splitlines() if "# required" not in line))


def test_settings_of_all_three_sources(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        'listen.port = 1\nlisten.host = "::1"\npublic.url = "https://a.example"\n'
        '[[relays]]\naddress = "wss://r:1"\ngateway_address = "wss://r:2"\n'
    )
    config = load(
        GatewayConfig,
        file=file,
        environ={"BYOAI_GATEWAY_LISTEN__PORT": "2", "BYOAI_GATEWAY_USERS__SECRET": "s" * 32},
        prefix=PREFIX,
        flags={"log.form": "console"},
    )
    assert (config.listen.host, config.listen.port) == ("::1", 2)
    assert config.users.secret == Secret("s" * 32)
    assert config.log.form == "console"
    assert config.relays == (RelaySection(address="wss://r:1", gateway_address="wss://r:2"),)
    check(config)


@pytest.mark.parametrize(
    "name",
    [
        "limits.removals_per_minute",
        "limits.agent_tokens_per_minute",
        "limits.agent_renewals_per_minute",
        "limits.user_tokens_per_minute",
        "limits.user_renewals_per_minute",
        "tunnels.max_revoked_per_user",
    ],
)
def test_a_limit_that_would_stop_everything_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load(GatewayConfig, file=None, environ={}, prefix=PREFIX, flags={name: 0})


@pytest.mark.parametrize("seconds", ["1", "604801", "34300800"])
def test_a_services_certificate_lives_a_week_at_most(seconds: str) -> None:
    name = "BYOAI_GATEWAY_SERVICES__CERTIFICATE_LIFETIME_S"
    with pytest.raises(ConfigError, match=r"services\.certificate_lifetime_s"):
        load(GatewayConfig, file=None, environ={name: seconds}, prefix=PREFIX, flags={})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("database.stale_s", "-1"),
        ("database.stale_s", "86401"),
        ("database.revocations_stale_s", "-1"),
        ("database.revocations_stale_s", "86401"),
        ("database.answer_timeout_s", "0"),
        ("limits.when_store_is_down", "ajar"),
    ],
)
def test_what_to_do_without_a_store_has_bounds(setting: str, value: str) -> None:
    with pytest.raises(ConfigError, match=setting.replace(".", r"\.")):
        load(GatewayConfig, file=None, environ={}, prefix=PREFIX, flags={setting: value})


def test_tunnels_are_believed_no_longer_than_anything_else() -> None:
    assert DatabaseSection(stale_s=60).tunnels_stale_s == 60
    assert DatabaseSection().tunnels_stale_s == 300
