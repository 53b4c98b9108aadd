"""The top level of a JSON object; the values stay the bytes that they came in.

A decoder into a `dict` keeps the last of two equal names without a word, and a provider's may
keep the first. Here every name is seen, escapes resolved, unless the bytes show that no name that
matters can stand there twice, as in nearly all bodies: that costs a tenth.
"""

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from byoai_shared.lone_surrogates import hidden
from byoai_shared.request_body.errors import (
    NotJson,
    UnreadableBody,
    given_twice,
    spelled_otherwise,
)
from byoai_shared.request_body.names import MODEL, folded

MAX_FIELDS: Final = 1000
"""At the top level; each costs far more memory than the bytes that it came in."""


class JsonBody(msgspec.Struct, frozen=True):
    """What is read of a JSON body."""

    fields: Mapping[str, msgspec.Raw]
    """The top level; of two equal names the last."""
    model: str | None
    """None: not given, or `null`."""


class _Key:
    """One name; no two are equal, so that a `dict` of them holds each."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Keys:
    """Makes the keys of one object, and counts them."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, kind: type, name: str) -> _Key:
        del kind
        self._count += 1
        if self._count > MAX_FIELDS:
            raise UnreadableBody(f"the body has more than {MAX_FIELDS} fields")
        return _Key(name)


_PAIRS: Final = dict[_Key, msgspec.Raw]
_plain: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text: Final = msgspec.json.Decoder(str | None)


def read_object(body: bytes | msgspec.Raw, once: Collection[str] = (MODEL,)) -> JsonBody:
    """Read the top level of a JSON object and its model; `once` are names of one plain word.

    Raises:
        NotJson: it is not JSON.
        UnreadableBody: it is no object, has too many fields, has a field of `once` twice or in a
            second spelling, or names its model by something other than a string.
    """
    fields = _read_plain(body, once)
    if fields is None:
        fields = _read_each(body, once)
    return JsonBody(fields, _model(fields.get(MODEL)))


def _read_plain(body: bytes | msgspec.Raw, once: Collection[str]) -> dict[str, msgspec.Raw] | None:
    """Read a body in which no name of `once` can stand twice; None: look at each field."""
    data = bytes(body)
    # Each field has a colon.
    if b"\\u" in data or data.count(b":") > MAX_FIELDS:
        return None
    for name in once:
        if data.count(b'"%b"' % name.encode()) > 1:
            return None
    try:
        fields = _plain.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for name in fields:
        plain = folded(name)
        if plain in once and name != plain:
            raise spelled_otherwise(plain, name)
    return fields


def _read_each(body: bytes | msgspec.Raw, once: Collection[str]) -> dict[str, msgspec.Raw]:
    fields: dict[str, msgspec.Raw] = {}
    for key, value in _pairs(body).items():
        name = key.name
        plain = folded(name)
        if plain in once:
            if name != plain:
                raise spelled_otherwise(plain, name)
            if name in fields:
                raise given_twice(name)
        fields[name] = value
    return fields


def _pairs(body: bytes | msgspec.Raw) -> dict[_Key, msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=_PAIRS, dec_hook=_Keys())
    except msgspec.ValidationError:
        raise UnreadableBody("the body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = hidden(bytes(body))
        if found is None:
            raise NotJson from None
    # Half a character is legal JSON (RFC 8259 section 8.2); JavaScript writes it so.
    pairs = _pairs(found.data)
    return {key: msgspec.Raw(found.restored(bytes(value))) for key, value in pairs.items()}


def _model(raw: msgspec.Raw | None) -> str | None:
    if raw is None:
        return None
    try:
        model: str | None = _text.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnreadableBody("model must be a string", param=MODEL) from None
    return model
