from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from byoai_agent.agent import named_upstreams
from byoai_agent.config import (
    PREFIX,
    AgentConfig,
    Allowed,
    Discovery,
    Limits,
    NamedUpstream,
)
from byoai_shared import config
from byoai_shared.log_settings import LogSettings

SECTIONS = [AgentConfig, NamedUpstream, Discovery, Limits, Allowed, LogSettings]


def load(file: Path | None = None, **environ: str) -> AgentConfig:
    return config.load(AgentConfig, file=file, environ=environ, prefix=PREFIX, flags={})


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_described(section: type[msgspec.Struct]) -> None:
    for name, hint in get_type_hints(section, include_extras=True).items():
        metas: list[Any] = [one for one in get_args(hint) if isinstance(one, msgspec.Meta)]
        assert metas, f"{name} has no description"
        assert metas[0].description
        if name.endswith(("_s", "_bytes")):
            assert metas[0].extra, f"{name} has no unit"


def test_defaults_suit_a_single_host() -> None:
    settings = load()
    assert settings.discovery.ports == (11434, 8000, 8080, 30000, 1234)
    assert settings.limits.max_body_bytes == 100 * 1024 * 1024
    assert settings.limits.first_byte_s == 600
    assert settings.allowed.groups == ()
    assert not settings.allowed.cloud_models


def test_a_file_may_name_servers_with_keys(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(
        '[[upstreams]]\nurl = "http://a:1"\nkey = "k1"\n[[upstreams]]\nurl = "http://b:2"\n'
    )
    one, two = load(file).upstreams
    assert (one.url, one.key.reveal() if one.key else None) == ("http://a:1", "k1")
    assert (two.url, two.key) == ("http://b:2", None)
    assert "k1" not in repr(one)


def test_one_key_for_servers_that_have_none_of_their_own() -> None:
    settings = load(BYOAI_AGENT_UPSTREAM_KEY="shared")
    (remembered,) = named_upstreams(settings, ("http://a:1",))
    assert remembered.key is not None
    assert remembered.key.reveal() == "shared"


def test_named_now_comes_before_named_when_joining(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('[[upstreams]]\nurl = "http://now:1"\n')
    assert [one.url for one in named_upstreams(load(file), ("http://then:1",))] == ["http://now:1"]
    assert named_upstreams(load(), ()) == ()
