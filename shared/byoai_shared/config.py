"""Settings: a TOML file, environment variables and flags, into one checked value.

Flags win over the environment, that over the file, that over the defaults. A name that nobody
knows is an error, wherever it stands: a misspelt limit that silently does nothing is worse than
a program that does not start. Secrets may be given as the path of a file.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

import msgspec

from byoai_shared.errors import ConfigError
from byoai_shared.secret import Secret

__all__ = ["ConfigError", "describe", "load"]

_Settings = TypeVar("_Settings", bound=msgspec.Struct)
_SECTION_MARK = "__"
_FILE_SUFFIX = "_file"


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
    `BYOAI_RELAY_AGENTS__PORT` sets `port` in the table `agents`. A flag is named `agents.port`.

    Raises:
        ConfigError: a setting is unknown or wrong; it says which, where, and what would do.
    """
    values: dict[str, Any] = {}
    for path, value, place in (
        *_from_file(type_, file),
        *_from_environment(type_, environ, prefix),
        *_from_flags(flags),
    ):
        _set(type_, values, path, value, place)
    try:
        return msgspec.convert(values, type_, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"a setting is wrong: {error}".replace("`$.", "`")) from None


def describe(type_: type[msgspec.Struct]) -> str:
    """Return a TOML file that sets everything to its default and explains it."""
    lines = [*_wrapped(type_.__doc__), ""]
    lines += _described_fields(type_)
    for name, section in _sections(type_):
        is_list = get_origin(_plain(_hints(type_)[name])) is not None
        lines += ["", *_wrapped(section.__doc__), f"[[{name}]]" if is_list else f"[{name}]"]
        lines += _described_fields(section)
    return "\n".join(lines).strip() + "\n"


# -- the three sources, each as (path, value, where it stands)

_Setting = tuple[tuple[str, ...], object, str]


def _from_file(type_: type[msgspec.Struct], file: Path | None) -> Iterator[_Setting]:
    if file is None:
        return
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"reading the settings in {file} failed: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings in {file} are not TOML: {error}") from error
    known = dict(_sections(type_))
    for name, value in table.items():
        if isinstance(value, dict) and name in known:
            for key, inner in cast("dict[str, object]", value).items():
                yield (name, key), inner, str(file)
        else:
            yield (name,), value, str(file)


def _from_environment(
    type_: type[msgspec.Struct], environ: Mapping[str, str], prefix: str
) -> Iterator[_Setting]:
    for name, value in environ.items():
        if name.startswith(prefix):
            path = tuple(name.removeprefix(prefix).lower().split(_SECTION_MARK))
            yield path, _listed(type_, path, value), f"the environment variable {name}"


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Setting]:
    for name, value in flags.items():
        yield tuple(name.split(".")), value, f"the flag {name}"


def _listed(type_: type[msgspec.Struct], path: tuple[str, ...], value: str) -> object:
    """Take a comma-separated text where a list is wanted."""
    owner = _owner(type_, path)
    wanted = _plain(_hints(owner).get(path[-1])) if owner is not None else None
    if get_origin(wanted) in {list, tuple}:
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


# -- putting them together


def _set(
    type_: type[msgspec.Struct],
    values: dict[str, Any],
    path: tuple[str, ...],
    value: object,
    place: str,
) -> None:
    owner = _owner(type_, path)
    names = _hints(owner) if owner is not None else {}
    key = path[-1]
    is_secret_file = key not in names and _is_secret(names.get(key.removesuffix(_FILE_SUFFIX)))
    if key not in names and not (key.endswith(_FILE_SUFFIX) and is_secret_file):
        raise ConfigError(_unknown(type_, path, place))
    table = values
    for section in path[:-1]:
        table = table.setdefault(section, {})
    if is_secret_file:
        key, value = key.removesuffix(_FILE_SUFFIX), _secret_from(str(value), place)
    table[key] = value


def _owner(type_: type[msgspec.Struct], path: tuple[str, ...]) -> type[msgspec.Struct] | None:
    sections = dict(_sections(type_))
    match path:
        case (_,):
            return type_
        case (section, _):
            return sections.get(section)
        case _:
            return None


def _unknown(type_: type[msgspec.Struct], path: tuple[str, ...], place: str) -> str:
    name = ".".join(path)
    known = list(_hints(type_))
    for section, inner in _sections(type_):
        known += [f"{section}.{field}" for field in _hints(inner)]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean `{close[0]}`?" if close else f"; known are {', '.join(sorted(known))}"
    return f"`{name}` in {place} is not a setting{hint}"


def _secret_from(path: str, place: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"reading the secret named by {place} failed: {error}") from None


def _decode(type_: type, value: object) -> object:
    """Make what msgspec does not know: secrets and paths."""
    if type_ is Secret and isinstance(value, str):
        return Secret(value)
    if issubclass(type_, Path) and isinstance(value, str | Path):
        return Path(value).expanduser()
    if isinstance(value, type_):
        return value
    # Not the value itself: it may be a secret in the wrong place.
    raise ConfigError(f"a setting that has to be a {type_.__name__} is a {type(value).__name__}")


# -- looking at the types


def _hints(type_: type[msgspec.Struct]) -> dict[str, Any]:
    return get_type_hints(type_, include_extras=True)


def _plain(hint: Any) -> Any:
    """Return a type without `Annotated` and without `| None`."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    options = [option for option in get_args(hint) if option is not type(None)]
    is_optional = type(None) in get_args(hint)
    return _plain(options[0]) if is_optional and len(options) == 1 else hint


def _is_secret(hint: Any) -> bool:
    return _plain(hint) is Secret


def _sections(type_: type[msgspec.Struct]) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    for name, hint in _hints(type_).items():
        inner = _plain(hint)
        element = next(iter(get_args(inner)), inner)
        if isinstance(element, type) and issubclass(element, msgspec.Struct):
            yield name, element


def _described_fields(type_: type[msgspec.Struct]) -> Iterator[str]:
    hints = _hints(type_)
    sections = dict(_sections(type_))
    for field in msgspec.structs.fields(type_):
        if field.name in sections:
            continue
        meta = next((arg for arg in get_args(hints[field.name]) if _is_meta(arg)), None)
        extra: dict[str, object] = (meta.extra if meta is not None else None) or {}
        unit = extra.get("unit")
        text = meta.description if meta is not None else None
        yield f"# {text or field.name}{f' [{unit}]' if unit else ''}"
        yield _described_default(field)


def _is_meta(argument: object) -> bool:
    return isinstance(argument, msgspec.Meta)


def _described_default(field: msgspec.structs.FieldInfo) -> str:
    default = field.default
    if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    if default is msgspec.NODEFAULT:
        return f"{field.name} =  # required"
    if default is None or isinstance(default, Secret):
        return f"# {field.name} ="
    return f"{field.name} = {_toml(default)}"


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case list() | tuple():
            items = cast("list[object]", value)
            return f"[{', '.join(_toml(item) for item in items)}]"
        case _:
            return msgspec.json.encode(str(value)).decode()


def _wrapped(doc: str | None) -> list[str]:
    return [f"# {line.strip()}" for line in (doc or "").strip().splitlines() if line.strip()]
