"""What settings a program has, read off its configuration type: names, types, descriptions.

A configuration is a tree of `msgspec.Struct`s; a field whose type is one is a table, every
other field is a setting, also one that lists tables. It looks at types only, never at values
that somebody gave.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, cast, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from byoai_shared.secret import Secret

Place = tuple[str, ...]
"""Where something stands: `("agents", "port")`."""

FILE_SUFFIX = "_file"
"""A secret may be given as the path of a file: `key` as `key_file`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting."""

    path: Place
    field: FieldInfo

    @property
    def name(self) -> str:
        """Its name as a person writes it."""
        return ".".join(self.path)

    @property
    def element(self) -> type[msgspec.Struct] | None:
        """The type of the tables that it lists, if it does."""
        return element_of(self.field.type)


def bare(hint: Any) -> Any:
    """Return a type without `Annotated` and without `| None`."""
    if get_origin(hint) is Annotated:
        return bare(get_args(hint)[0])
    options = [option for option in get_args(hint) if option is not type(None)]
    return bare(options[0]) if type(None) in get_args(hint) and len(options) == 1 else hint


def table_of(hint: Any) -> type[msgspec.Struct] | None:
    """Return the type of a table, None for anything else."""
    plain = bare(hint)
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        return plain
    return None


def element_of(hint: Any) -> type[msgspec.Struct] | None:
    """Return the type of the tables in a list, None for anything else."""
    plain = bare(hint)
    if get_origin(plain) not in {list, tuple}:
        return None
    return table_of(get_args(plain)[0])


def is_secret(hint: Any) -> bool:
    """Say whether a field holds a secret."""
    return bare(hint) is Secret


def settings_of(type_: type[msgspec.Struct], path: Place = ()) -> Iterator[Setting]:
    """Yield every setting below a table, its own before those of the tables in it."""
    inner: list[tuple[type[msgspec.Struct], str]] = []
    for field in msgspec.structs.fields(type_):
        table = table_of(field.type)
        if table is None:
            yield Setting((*path, field.name), field)
        else:
            inner.append((table, field.name))
    for table, name in inner:
        yield from settings_of(table, (*path, name))


def tables_of(type_: type[msgspec.Struct]) -> frozenset[Place]:
    """Return where the tables of a configuration stand."""
    found = {setting.path[:depth] for setting in settings_of(type_) for depth in _depths(setting)}
    return frozenset(found)


def _depths(setting: Setting) -> range:
    return range(1, len(setting.path))


def description(field: FieldInfo) -> str:
    """Return what a field says about itself, its unit included; empty if it says nothing."""
    text, unit = "", ""
    for argument in get_args(field.type) if get_origin(field.type) is Annotated else ():
        if isinstance(argument, msgspec.Meta):
            text = argument.description or text
            extra = cast("dict[str, str]", argument.extra or {})
            unit = extra.get("unit", unit)
    return f"{text} [{unit}]" if text and unit else text


def undocumented(type_: type[msgspec.Struct]) -> list[str]:
    """Name the settings that do not say what they are for; a program's tests expect none."""
    names: list[str] = []
    for setting in settings_of(type_):
        if not description(setting.field):
            names.append(setting.name)
        if setting.element is not None:
            names += [f"{setting.name}[].{name}" for name in undocumented(setting.element)]
    return names


def default_of(field: FieldInfo) -> Any:
    """Return a field's default, `msgspec.NODEFAULT` if it is required."""
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default
