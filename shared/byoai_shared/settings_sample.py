"""A sample of a program's settings: TOML that sets everything to its default and explains it.

What has no default stands in it as a comment, so that the sample itself is valid; secrets are
never written, not even a default.
"""

import textwrap
from collections.abc import Collection, Iterable, Iterator
from enum import Enum
from typing import Literal, cast, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from byoai_shared.secret import Secret
from byoai_shared.settings import (
    FILE_SUFFIX,
    bare,
    default_of,
    description,
    element_of,
    is_secret,
    table_of,
)

WIDTH = 92


def describe(type_: type[msgspec.Struct]) -> str:
    """Return a TOML file that sets everything to its default and explains it."""
    lines = [*_comment(_summary(type_)), "", *_table(type_, "", None)]
    return "\n".join(lines).replace("\n\n\n", "\n\n").strip() + "\n"


def _table(type_: type[msgspec.Struct], path: str, values: msgspec.Struct | None) -> Iterator[str]:
    """Yield a table's settings, then the tables in it: TOML wants them in this order.

    `values` is the table that holds by default, where it differs from what its type says.
    """
    fields = msgspec.structs.fields(type_)
    for field in fields:
        if table_of(field.type) is None and element_of(field.type) is None:
            yield from _setting(field, _default(field, values))
    for field in fields:
        table, element = table_of(field.type), element_of(field.type)
        name = f"{path}.{field.name}" if path else field.name
        if table is not None:
            default = _default(field, values)
            inner = default if isinstance(default, msgspec.Struct) else None
            yield from ("", *_comment(description(field) or _summary(table)))
            lines = [f"[{name}]", *_table(table, name, inner)]
            # What is absent unless something in it is set must be absent here as well.
            yield from _out_of_force(lines) if default is None else lines
        elif element is not None:
            yield from ("", *_comment(description(field)))
            yield from _out_of_force([f"[[{name}]]", *_table(element, name, None)])


def _default(field: FieldInfo, values: msgspec.Struct | None) -> object:
    return default_of(field) if values is None else getattr(values, field.name)


def _out_of_force(lines: Iterable[str]) -> Iterator[str]:
    return (f"# {line}" for line in lines if line)


def _setting(field: FieldInfo, default: object) -> Iterator[str]:
    plain = bare(field.type)
    text = description(field)
    if get_origin(plain) is Literal:
        text += f"; one of {', '.join(str(choice) for choice in get_args(plain))}"
    yield from _comment(text)
    if default is msgspec.NODEFAULT:
        yield f"# {field.name} =  # required"
    elif default is None or is_secret(field.type):
        yield f"# {field.name} ="
    else:
        yield f"{field.name} = {_toml(default)}"
    if is_secret(field.type):
        yield f"# {field.name}{FILE_SUFFIX} =  # or the file that holds it"


def _toml(value: object) -> str:
    match value:
        case Secret():
            return '"***"'
        case Enum():
            return _toml(value.value)
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case list() | tuple() | set() | frozenset():
            items = cast("Collection[object]", value)
            return f"[{', '.join(_toml(item) for item in items)}]"
        case dict():
            table = cast("dict[object, object]", value)
            pairs = (f"{_toml(key)} = {_toml(inner)}" for key, inner in table.items())
            return f"{{{', '.join(pairs)}}}"
        case _:
            return msgspec.json.encode(str(value)).decode()


def _summary(type_: type[msgspec.Struct]) -> str:
    return (type_.__doc__ or "").strip().partition("\n\n")[0]


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), WIDTH)]
