"""Settings: a TOML file, environment variables and flags, into one checked value.

Flags win over the environment, that over the file, that over the defaults. A name that nobody
knows is an error, wherever it stands: a misspelt limit that silently does nothing is worse than
a program that does not start. Secrets may be given as the path of a file; blanks and line breaks
around one are removed, wherever it comes from. An error names the setting and its place, never
the value of a secret.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_origin

import msgspec
from msgspec.structs import FieldInfo

from byoai_shared.errors import ConfigError
from byoai_shared.secret import Secret
from byoai_shared.settings import (
    FILE_SUFFIX,
    Place,
    Setting,
    bare,
    default_of,
    element_of,
    is_secret,
    settings_of,
    table_of,
    tables_of,
    undocumented,
)
from byoai_shared.settings_sample import describe

__all__ = ["ConfigError", "describe", "load", "undocumented"]

_Settings = TypeVar("_Settings", bound=msgspec.Struct)
_SECTION_MARK = "__"


@dataclass(frozen=True, slots=True)
class _Given:
    """What somebody gave for a setting."""

    value: object = None
    source: str = ""
    is_text: bool = False
    is_file: bool = False


def load(
    type_: type[_Settings],
    *,
    file: Path | None,
    environ: Mapping[str, str],
    prefix: str,
    flags: Mapping[str, object],
) -> _Settings:
    """Read the settings of a program.

    `prefix` begins its environment variables: with `BYOAI_RELAY_`, the variable
    `BYOAI_RELAY_AGENTS__PORT` sets `port` in the table `agents`. A flag is named `agents.port`;
    None means that it was not given. In the environment a list is separated by commas, or is
    JSON.

    Raises:
        ConfigError: a setting is unknown or wrong; it says which, where, and what would do.
    """
    known = {setting.path: setting for setting in settings_of(type_)}
    given: dict[Place, _Given] = {}
    for source in (
        _from_file(file, tables_of(type_)),
        _from_environment(environ, prefix),
        _from_flags(flags),
    ):
        given |= _recognised(source, known)
    values = {path: _converted(known[path], one) for path, one in given.items()}
    return _built(type_, values, ())


# -- the three sources


def _from_file(file: Path | None, tables: frozenset[Place]) -> dict[Place, _Given]:
    if file is None:
        return {}
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"reading the settings in {file} failed: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"the settings in {file} are not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the settings in {file} are not TOML: {error}") from error
    return {path: _Given(value, str(file)) for path, value in _flat(content, tables, ())}


def _flat(
    content: Mapping[str, Any], tables: frozenset[Place], path: Place
) -> Iterable[tuple[Place, object]]:
    for name, value in content.items():
        inner = (*path, name)
        if inner in tables and isinstance(value, dict):
            yield from _flat(cast("dict[str, Any]", value), tables, inner)
        else:
            yield inner, value


def _from_environment(environ: Mapping[str, str], prefix: str) -> dict[Place, _Given]:
    return {
        tuple(name.removeprefix(prefix).lower().split(_SECTION_MARK)): _Given(
            value, f"the environment variable {name}", is_text=True
        )
        for name, value in environ.items()
        if name.startswith(prefix)
    }


def _from_flags(flags: Mapping[str, object]) -> dict[Place, _Given]:
    return {
        tuple(name.split(".")): _Given(value, f"the flag {name}", is_text=True)
        for name, value in flags.items()
        if value is not None
    }


# -- names


def _recognised(
    source: Mapping[Place, _Given], known: Mapping[Place, Setting]
) -> dict[Place, _Given]:
    """Return what one source gives for known settings, files of secrets among them."""
    found: dict[Place, _Given] = {}
    for path, given in source.items():
        secret = (*path[:-1], path[-1].removesuffix(FILE_SUFFIX))
        if path in known:
            found[path] = given
        elif secret not in known or not is_secret(known[secret].field.type):
            raise ConfigError(_unknown(path, given, known))
        elif secret in source:
            name = known[secret].name
            raise ConfigError(f"`{name}` and `{name}{FILE_SUFFIX}` exclude each other")
        else:
            found[secret] = _Given(given.value, given.source, is_file=True)
    return found


def _unknown(path: Place, given: _Given, known: Mapping[Place, Setting]) -> str:
    name = ".".join(path)
    beneath = [setting.name for setting in known.values() if setting.path[: len(path)] == path]
    if beneath:
        return f"`{name}` in {given.source} is a table, not a setting; in it is {beneath[0]}"
    return f"`{name}` in {given.source} is not a setting{_closest(name, known.values())}"


def _closest(name: str, known: Iterable[Setting]) -> str:
    names = [setting.name for setting in known]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known are {', '.join(sorted(names))}"


# -- values


def _converted(setting: Setting, given: _Given) -> object:
    value = given.value
    if given.is_file:
        return _read_secret(value, f"`{setting.name}{FILE_SUFFIX}` in {given.source}")
    if given.is_text and isinstance(value, str):
        value = _listed(setting, value, given.source)
    value = _with_secret_files(setting, value, given.source)
    try:
        return msgspec.convert(
            value, setting.field.type, strict=not given.is_text, dec_hook=_decode
        )
    except msgspec.ValidationError as error:
        raise ConfigError(_wrong(setting, given, str(error))) from None


def _listed(setting: Setting, text: str, source: str) -> object:
    """Read a text for a setting that wants several values."""
    if get_origin(bare(setting.field.type)) not in {list, tuple, set, frozenset, dict}:
        return text
    if not text.lstrip().startswith(("[", "{")):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return cast("object", msgspec.json.decode(text))
    except msgspec.DecodeError:
        raise ConfigError(f"`{setting.name}` in {source} is not JSON") from None


def _with_secret_files(setting: Setting, value: object, source: str) -> object:
    """Put secrets in place of their files, in a list of tables."""
    element = setting.element
    if element is None or not isinstance(value, list):
        return value
    items = cast("list[object]", value)
    place = f"`{setting.name}[]` in {source}"
    return [
        _with_secrets_read(cast("dict[str, object]", item), element, place)
        if isinstance(item, dict)
        else item
        for item in items
    ]


def _with_secrets_read(
    table: dict[str, object], type_: type[msgspec.Struct], place: str
) -> dict[str, object]:
    read = dict(table)
    for field in msgspec.structs.fields(type_):
        file = f"{field.name}{FILE_SUFFIX}"
        if is_secret(field.type) and file in read and field.name not in read:
            read[field.name] = _read_secret(read.pop(file), f"`{file}` of {place}")
    return read


def _read_secret(path: object, place: str) -> Secret:
    try:
        return Secret(Path(str(path)).expanduser().read_text("utf-8").strip())
    except OSError as error:
        raise ConfigError(f"reading the secret of {place} failed: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the secret of {place} is not UTF-8") from None


def _decode(type_: type, value: object) -> object:
    """Make what msgspec does not know: secrets and paths."""
    if isinstance(value, type_):
        return value
    if isinstance(value, str) and type_ is Secret:
        # As from a file: a line break after it is the editor's or the shell's, not the secret's.
        return Secret(value.strip())
    if isinstance(value, str) and issubclass(type_, Path):
        return Path(value).expanduser()
    # Not the value itself: it may be a secret in the wrong place.
    raise ValueError(f"expected text, got `{type(value).__name__}`")


def _wrong(setting: Setting, given: _Given, found: str) -> str:
    sentence, _, where = found.partition(" - at `$")
    sentence = sentence[:1].lower() + sentence[1:]
    unknown = re.search(r"unknown field `(.*)`", sentence)
    hint = ""
    if unknown is not None and setting.element is not None:
        hint = _closest(unknown[1], settings_of(setting.element))
    return f"`{setting.name}{where.rstrip('`')}` in {given.source} is wrong: {sentence}{hint}"


# -- putting them together


def _built(type_: type[_Settings], values: Mapping[Place, object], path: Place) -> _Settings:
    """Make a table of what was given and, for the rest, its defaults."""
    fields = {
        field.name: _field(field, values, (*path, field.name))
        for field in msgspec.structs.fields(type_)
    }
    try:
        return type_(**fields)
    except ValueError as error:
        raise ConfigError(f"{_table_name(path)} are wrong: {error}") from error


def _field(field: FieldInfo, values: Mapping[Place, object], path: Place) -> object:
    table = table_of(field.type)
    default = default_of(field)
    if table is None:
        value = values.get(path, default)
        if value is msgspec.NODEFAULT:
            raise ConfigError(_missing(field, path))
        return value
    is_given = any(given[: len(path)] == path for given in values)
    if default is msgspec.NODEFAULT or (is_given and default is None):
        return _built(table, values, path)
    return _built(table, _under(default, path) | dict(values), path) if is_given else default


def _under(table: msgspec.Struct, path: Place) -> dict[Place, object]:
    """Return a default table's own values, which may differ from its type's defaults."""
    found: dict[Place, object] = {}
    for field in msgspec.structs.fields(table):
        value: object = getattr(table, field.name)
        inner = (*path, field.name)
        found |= _under(value, inner) if isinstance(value, msgspec.Struct) else {inner: value}
    return found


def _missing(field: FieldInfo, path: Place) -> str:
    name = ".".join(path)
    kind = " (a list of tables)" if element_of(field.type) is not None else ""
    return f"`{name}`{kind} is not set, and it has no default"


def _table_name(path: Place) -> str:
    return f"the settings in `{'.'.join(path)}`" if path else "the settings"
