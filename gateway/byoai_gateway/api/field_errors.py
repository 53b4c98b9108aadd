"""What is wrong with each field of a body or query, in sentences for whoever filled it in.

msgspec's own sentences quote patterns, and values too: a key that was pasted into the wrong field
would come back. None of that stands in these.
"""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, get_args

import msgspec

# A `$` alone also matches before a line break at the end.
PRINTABLE: Final = r"^[^\x00-\x1f\x7f]+$(?!\n)"
VISIBLE_ASCII: Final = r"^[\x21-\x7e]+$(?!\n)"

_OF_PATTERNS: Final[Mapping[str, str]] = {
    PRINTABLE: "it must be one line of text, and not empty",
    VISIBLE_ASCII: "it must be one word of ASCII characters; look for spaces and line breaks in it",
}
_UNKNOWN_NAMED: Final = 10
"""Somebody else's JSON may have any number of fields that we do not know."""

_PLACE = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_FIELD = re.compile(r"(?:required|unknown) field `(?P<field>[^`]*)`")
_PATTERN = re.compile(r"matching regex (?P<pattern>.*)$", re.DOTALL)
_LENGTH = re.compile(r"^Expected `(?P<type>\w+)` of length (?P<way>[<>]=) (?P<count>\d+)$")
_EMPTY: Final = "Expected `str` of length >= 1"
_UNITS: Final = {"str": "characters", "array": "entries"}


def errors_of_fields(raw: bytes, type_: type[msgspec.Struct]) -> dict[str, str]:
    """Look at each field by itself, so that all that is wrong is told at once.

    Nothing is found in what is no object.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is not JSON to its end.
    """
    try:
        given = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return {}
    known = {field.encode_name: field for field in msgspec.structs.fields(type_)}
    found = [_error_of_field(name, field, given.get(name)) for name, field in known.items()]
    unknown = [(name, "there is no such field") for name in given if name not in known]
    return dict([error for error in found if error is not None] + unknown[:_UNKNOWN_NAMED])


def told(error: msgspec.ValidationError, type_: object) -> str:
    """Say it without a value and without a pattern; `type_` is what was expected."""
    sentence = _PLACE.sub("", str(error))
    if pattern := _PATTERN.search(sentence):
        shown = pattern["pattern"]
        known = (text for it, text in _OF_PATTERNS.items() if shown == repr(it))
        return next(known, "it holds characters that it may not hold")
    if sentence == _EMPTY:
        return "it must not be empty"
    if length := _LENGTH.match(sentence):
        bound = "most" if length["way"] == "<=" else "least"
        return f"it must have at {bound} {length['count']} {_UNITS.get(length['type'], 'parts')}"
    if sentence.startswith("Invalid"):
        choices = _choices(type_)
        return f"it must be one of {', '.join(choices)}" if choices else "there is no such value"
    return sentence


def _error_of_field(
    name: str, field: msgspec.structs.FieldInfo, value: msgspec.Raw | None
) -> tuple[str, str] | None:
    if value is None:
        return (name, "it must be given") if field.required else None
    field_type: Any = field.type
    try:
        msgspec.json.decode(value, type=field_type)
    except msgspec.ValidationError as error:
        sentence = str(error)
        place, inner = _PLACE.search(sentence), _FIELD.search(sentence)
        parts = (name, place["path"] if place else "", inner["field"] if inner else "")
        return _joined(parts), told(error, field_type)
    return None


def _joined(parts: tuple[str, ...]) -> str:
    return ".".join(part for part in parts if part).replace(".[", "[")


def _choices(type_: object) -> list[str]:
    """The values of the enumerations in a field's type."""
    if isinstance(type_, type) and issubclass(type_, Enum):
        return [str(it.value) for it in type_]
    return [value for part in get_args(type_) for value in _choices(part)]
