import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from byoai_shared.config import ConfigError, describe, load, undocumented
from byoai_shared.secret import Secret

PREFIX = "BYOAI_TEST_"
CANARY = "canary-that-nobody-may-see"


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table."""


class Listener(Table, frozen=True):
    """Where it listens."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(description="port; 0 lets the kernel choose", ge=0, le=65535)] = 80


class Limits(Table, frozen=True):
    """What it takes on."""

    timeout_s: Annotated[float, Meta(description="patience", gt=0, extra={"unit": "s"})] = 5.0
    ports: Annotated[tuple[int, ...], Meta(description="ports that are tried")] = (1, 2)
    groups: Annotated[list[str], Meta(description="groups")] = msgspec.field(
        default_factory=list[str]
    )
    listener: Annotated[Listener, Meta(description="a table in a table")] = Listener(port=90)


class Peer(Table, frozen=True):
    """Another part."""

    address: Annotated[str, Meta(description="where it is")]
    key: Annotated[Secret | None, Meta(description="its key")] = None


class Users(Table, frozen=True):
    """Who may use it."""

    secret: Annotated[Secret | None, Meta(description="shared secret")] = None
    key_file: Annotated[Path | None, Meta(description="a file that is no secret")] = None
    verify: Annotated[bool, Meta(description="check them")] = True
    form: Annotated[Literal["json", "console"], Meta(description="form of the log")] = "json"


class Settings(Table, frozen=True):
    """Everything the program can be told."""

    name: Annotated[str, Meta(description="its name")] = "one"
    listen: Listener = Listener()
    limits: Limits = Limits()
    users: Users = Users()
    proxy: Annotated[Listener | None, Meta(description="a proxy, if any")] = None
    peers: Annotated[tuple[Peer, ...], Meta(description="the others")] = ()


class Demanding(Table, frozen=True):
    """A program that has to be told something."""

    issuer: Annotated[str, Meta(description="who signs")]
    peer: Annotated[Peer, Meta(description="whom to call")]

    def __post_init__(self) -> None:
        if self.issuer == self.peer.address:
            raise ValueError("issuer and peer are the same")


def read(
    tmp_path: Path | None = None,
    toml: str | None = None,
    environ: dict[str, str] | None = None,
    **flags: object,
) -> Settings:
    file = None
    if toml is not None and tmp_path is not None:
        file = tmp_path / "test.toml"
        file.write_text(toml, "utf-8")
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    return load(Settings, file=file, environ=environ or {}, prefix=PREFIX, flags=dotted)


# -- where a value comes from


def test_without_anything_the_defaults_hold() -> None:
    assert read() == Settings()


def test_a_file_sets_values_in_tables(tmp_path: Path) -> None:
    settings = read(tmp_path, 'name = "two"\n[listen]\nport = 1\n[limits.listener]\nport = 2')
    assert settings.name == "two"
    assert settings.listen == Listener(port=1)
    assert settings.limits.listener == Listener(port=2)


def test_the_environment_sets_values_in_tables() -> None:
    settings = read(
        environ={
            "BYOAI_TEST_NAME": "two",
            "BYOAI_TEST_LISTEN__PORT": "1",
            "BYOAI_TEST_LIMITS__LISTENER__PORT": "2",
            "BYOAI_OTHER_NAME": "three",
            "PATH": "/bin",
        }
    )
    assert (settings.name, settings.listen.port, settings.limits.listener.port) == ("two", 1, 2)


def test_flags_set_values_in_tables() -> None:
    assert read(listen__port=1).listen.port == 1


def test_a_flag_that_was_not_given_sets_nothing() -> None:
    assert read(environ={"BYOAI_TEST_LISTEN__PORT": "1"}, listen__port=None).listen.port == 1


ports = st.none() | st.integers(0, 65535)


@given(in_file=ports, in_environment=ports, in_flag=ports)
def test_flags_win_over_the_environment_that_over_the_file_that_over_the_default(
    tmp_path_factory: pytest.TempPathFactory,
    in_file: int | None,
    in_environment: int | None,
    in_flag: int | None,
) -> None:
    settings = read(
        tmp_path_factory.mktemp("settings"),
        "" if in_file is None else f"[listen]\nport = {in_file}",
        {} if in_environment is None else {"BYOAI_TEST_LISTEN__PORT": str(in_environment)},
        listen__port=in_flag,
    )
    given_ports = [port for port in (in_flag, in_environment, in_file) if port is not None]
    assert settings.listen.port == [*given_ports, 80][0]
    assert settings == msgspec.structs.replace(Settings(), listen=settings.listen)


def test_a_table_keeps_what_its_default_says_where_nothing_is_given(tmp_path: Path) -> None:
    settings = read(tmp_path, '[limits.listener]\nhost = "::1"')
    assert settings.limits.listener == Listener(host="::1", port=90)


def test_sources_are_combined_within_a_table(tmp_path: Path) -> None:
    environ = {"BYOAI_TEST_LISTEN__HOST": "::1"}
    settings = read(tmp_path, "[listen]\nport = 5", environ)
    assert settings.listen == Listener(host="::1", port=5)


def test_an_optional_table_exists_once_something_in_it_is_given() -> None:
    assert read().proxy is None
    assert read(environ={"BYOAI_TEST_PROXY__PORT": "9"}).proxy == Listener(port=9)


# -- kinds of values


def test_texts_from_the_environment_become_what_is_wanted() -> None:
    settings = read(
        environ={
            "BYOAI_TEST_LIMITS__TIMEOUT_S": "2.5",
            "BYOAI_TEST_LIMITS__PORTS": "8, 9",
            "BYOAI_TEST_LIMITS__GROUPS": '["a,b", "c"]',
            "BYOAI_TEST_USERS__VERIFY": "false",
            "BYOAI_TEST_USERS__KEY_FILE": "/tmp/key",
            "BYOAI_TEST_PEERS": '[{"address": "a"}, {"address": "b", "key": "k"}]',
        }
    )
    assert settings.limits.timeout_s == 2.5
    assert settings.limits.ports == (8, 9)
    assert settings.limits.groups == ["a,b", "c"]
    assert settings.users.verify is False
    assert settings.users.key_file == Path("/tmp/key")
    assert settings.peers == (Peer(address="a"), Peer(address="b", key=Secret("k")))


def test_an_empty_text_is_an_empty_list() -> None:
    assert read(environ={"BYOAI_TEST_LIMITS__PORTS": ""}).limits.ports == ()


def test_a_home_directory_is_found() -> None:
    path = read(environ={"BYOAI_TEST_USERS__KEY_FILE": "~/key"}).users.key_file
    assert path == Path("~/key").expanduser()
    assert path != Path("~/key")


def test_a_flag_may_bring_a_value_of_its_own_type() -> None:
    assert read(users__key_file=Path("/tmp/key")).users.key_file == Path("/tmp/key")
    assert read(limits__ports=(5, 6)).limits.ports == (5, 6)


def test_a_list_of_tables_comes_from_the_file(tmp_path: Path) -> None:
    toml = '[[peers]]\naddress = "a"\n[[peers]]\naddress = "b"\nkey = "k"'
    assert read(tmp_path, toml).peers == (
        Peer(address="a"),
        Peer(address="b", key=Secret("k")),
    )


# -- secrets


def test_a_secret_may_be_given_as_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    assert read(tmp_path, f'[users]\nsecret_file = "{secret}"').users.secret == Secret("s3cret")
    environ = {"BYOAI_TEST_USERS__SECRET_FILE": str(secret)}
    assert read(environ=environ).users.secret == Secret("s3cret")
    assert read(users__secret_file=str(secret)).users.secret == Secret("s3cret")


def test_blanks_around_a_secret_are_removed_wherever_it_comes_from(tmp_path: Path) -> None:
    """`$'sk-key\\n'` in an environment is as common as a line break at the end of a file."""
    assert read(environ={"BYOAI_TEST_USERS__SECRET": " s3cret\r\n"}).users.secret == Secret(
        "s3cret"
    )
    assert read(tmp_path, '[users]\nsecret = "s3cret\\n"').users.secret == Secret("s3cret")
    assert read(users__secret="s3cret\n").users.secret == Secret("s3cret")


def test_a_secret_in_a_list_of_tables_may_be_given_as_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    toml = f'[[peers]]\naddress = "a"\nkey_file = "{secret}"'
    assert read(tmp_path, toml).peers == (Peer(address="a", key=Secret("s3cret")),)


def test_a_field_that_only_ends_in_file_is_itself(tmp_path: Path) -> None:
    settings = read(tmp_path, '[users]\nkey_file = "nowhere"')
    assert settings.users.key_file == Path("nowhere")


def test_a_later_secret_wins_over_an_earlier_file_that_is_then_not_read(tmp_path: Path) -> None:
    environ = {"BYOAI_TEST_USERS__SECRET": "s3cret"}
    settings = read(tmp_path, '[users]\nsecret_file = "/does/not/exist"', environ)
    assert settings.users.secret == Secret("s3cret")


def test_a_later_file_wins_over_an_earlier_secret(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from the file")
    environ = {"BYOAI_TEST_USERS__SECRET_FILE": str(secret)}
    settings = read(tmp_path, '[users]\nsecret = "in the file"', environ)
    assert settings.users.secret == Secret("from the file")


def test_a_secret_and_its_file_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"users\.secret.*exclude each other"):
        read(tmp_path, f'[users]\nsecret = "{CANARY}"\nsecret_file = "x"')


@pytest.mark.parametrize("name", ["does-not-exist", "."])
def test_a_secrets_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"users\.secret_file.*BYOAI_TEST_USERS__SECRET_FILE"):
        read(environ={"BYOAI_TEST_USERS__SECRET_FILE": str(tmp_path / name)})


def test_a_secret_that_is_no_text_is_refused_without_being_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"users\.secret") as refused:
        read(tmp_path, f'[users]\nsecret = ["{CANARY}"]')
    assert CANARY not in str(refused.value)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff" + CANARY.encode())
    with pytest.raises(ConfigError, match="UTF-8") as refused:
        read(users__secret_file=str(binary))
    assert CANARY not in str(refused.value)


def test_settings_do_not_show_their_secrets() -> None:
    settings = read(environ={"BYOAI_TEST_USERS__SECRET": CANARY})
    assert CANARY not in repr(settings)


# -- what is wrong is told, and where


def wrong(tmp_path: Path, toml: str | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, toml, environ)
    return str(refused.value)


def test_an_unknown_setting_in_the_file_names_the_closest(tmp_path: Path) -> None:
    sentence = wrong(tmp_path, "[listen]\nprot = 1")
    assert "`listen.prot`" in sentence
    assert "test.toml" in sentence
    assert "did you mean `listen.port`?" in sentence


def test_an_unknown_table_names_the_closest(tmp_path: Path) -> None:
    assert "`limit`" in wrong(tmp_path, "[limit]\ntimeout_s = 1")


def test_an_unknown_variable_names_itself_and_the_closest(tmp_path: Path) -> None:
    sentence = wrong(tmp_path, environ={"BYOAI_TEST_LISTEN__PROT": "1"})
    assert "BYOAI_TEST_LISTEN__PROT" in sentence
    assert "`listen.port`" in sentence


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the flag listen\.prot.*did you mean `listen\.port`"):
        read(listen__prot=1)


def test_a_name_that_is_close_to_none_lists_them_all(tmp_path: Path) -> None:
    sentence = wrong(tmp_path, "zzzzzzzzzzzzzzzz = 1")
    assert "known are" in sentence
    assert "limits.listener.port" in sentence


def test_a_file_for_what_is_no_secret_is_unknown(tmp_path: Path) -> None:
    assert "`name_file`" in wrong(tmp_path, 'name_file = "x"')


def test_a_table_given_as_a_value_is_told_so(tmp_path: Path) -> None:
    assert "`listen` in" in wrong(tmp_path, "listen = 5")
    assert "is a table" in wrong(tmp_path, environ={"BYOAI_TEST_LISTEN": "5"})


def test_an_unknown_key_in_a_list_of_tables_names_the_closest(tmp_path: Path) -> None:
    sentence = wrong(tmp_path, '[[peers]]\naddress = "a"\n[[peers]]\nadress = "b"')
    assert "`peers[1]`" in sentence
    assert "did you mean `address`?" in sentence


@pytest.mark.parametrize(
    ("toml", "name"),
    [
        ('[listen]\nport = "80"', "listen.port"),
        ("[listen]\nport = 70000", "listen.port"),
        ("[listen]\nport = 1.0", "listen.port"),
        ("[limits]\ntimeout_s = 0", "limits.timeout_s"),
        ('[limits]\nports = ["a"]', "limits.ports[0]"),
        ("[users]\nverify = 1", "users.verify"),
        ('[users]\nform = "yaml"', "users.form"),
        ("[users]\nkey_file = 5", "users.key_file"),
        ("[[peers]]\naddress = 5", "peers[0].address"),
        ("peers = 5", "peers"),
        ("peers = [5]", "peers[0]"),
        ("[[peers]]", "peers[0]"),
        ("[[peers]]\naddress = 'a'\nkey = 5", "peers[0].key"),
    ],
)
def test_a_wrong_value_in_the_file_is_named(tmp_path: Path, toml: str, name: str) -> None:
    sentence = wrong(tmp_path, toml)
    assert f"`{name}` in " in sentence
    assert "test.toml" in sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LISTEN__PORT", "eighty"),
        ("LISTEN__PORT", ""),
        ("LISTEN__PORT", "70000"),
        ("USERS__VERIFY", "perhaps"),
        ("LIMITS__PORTS", "1,b"),
        ("LIMITS__PORTS", "[1"),
        ("PEERS", '{"address": "a"}'),
        ("PEERS", "[{}]"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str) -> None:
    assert f"the environment variable BYOAI_TEST_{name}" in wrong(
        tmp_path, environ={f"BYOAI_TEST_{name}": value}
    )


def test_a_file_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml failed: No such file"):
        load(Settings, file=tmp_path / "nowhere.toml", environ={}, prefix=PREFIX, flags={})


def test_a_file_that_is_no_toml_is_told_where(tmp_path: Path) -> None:
    assert "line 2" in wrong(tmp_path, "name = 'one'\n???")


def test_a_file_that_is_no_text_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "binary.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(Settings, file=file, environ={}, prefix=PREFIX, flags={})


def demand(**flags: object) -> Demanding:
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    return load(Demanding, file=None, environ={}, prefix=PREFIX, flags=dotted)


def test_what_is_required_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"`issuer` is not set"):
        demand()
    with pytest.raises(ConfigError, match=r"`peer\.address` is not set"):
        demand(issuer="me")
    assert demand(issuer="me", peer__address="you").peer == Peer(address="you")


def test_values_that_do_not_go_together_are_told_so() -> None:
    with pytest.raises(ConfigError, match="issuer and peer are the same"):
        demand(issuer="me", peer__address="me")


# -- the sample


def test_the_sample_is_toml_that_changes_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, describe(Settings)) == Settings()


def test_what_the_sample_leaves_out_of_force_is_valid_too(tmp_path: Path) -> None:
    sample = describe(Settings)
    optional = sample[sample.index("# [proxy]") :].partition("\n\n")[0]
    toml = "\n".join(line.removeprefix("# ") for line in optional.splitlines())
    assert read(tmp_path, toml).proxy == Listener()


def every_setting(type_: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(type_)}


def test_the_sample_names_every_setting() -> None:
    sample = describe(Settings)
    for name in every_setting(Listener) | every_setting(Limits) | every_setting(Users):
        assert name in sample
    assert "# [[peers]]" in sample
    assert "[limits.listener]" in sample


def test_the_sample_says_what_a_setting_is_for_and_its_unit() -> None:
    assert "# patience [s]\ntimeout_s = 5.0" in describe(Settings)
    assert "# form of the log; one of json, console\n" in describe(Settings)


def test_the_sample_offers_a_file_for_each_secret() -> None:
    assert "# secret =\n# secret_file =  # or the file that holds it" in describe(Settings)


def test_what_is_required_is_marked_in_the_sample_which_stays_valid() -> None:
    sample = describe(Demanding)
    assert "# issuer =  # required" in sample
    assert tomllib.loads(sample) == {"peer": {}}


def test_the_sample_shows_no_secret() -> None:
    class Leaky(Table, frozen=True):
        """One with a default that it should not have."""

        secret: Annotated[Secret, Meta(description="a secret")] = Secret(CANARY)

    assert CANARY not in describe(Leaky)


def test_a_setting_without_a_description_is_found() -> None:
    class Element(Table, frozen=True):
        silent: int = 0

    class Undocumented(Table, frozen=True):
        told: Annotated[int, Meta(description="told")] = 0
        untold: int = 0
        elements: Annotated[list[Element], Meta(description="told")] = msgspec.field(
            default_factory=list[Any]
        )

    assert undocumented(Undocumented) == ["untold", "elements[].silent"]
    assert undocumented(Settings) == []
