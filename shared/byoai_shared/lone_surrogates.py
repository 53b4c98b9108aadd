r"""Lone surrogates in JSON: an escape such as `\ud83d` without its other half.

RFC 8259 section 8.2 allows them, and servers that cut text by UTF-16 units send them: half a
character in one event and half in the next. msgspec refuses them, so where it has refused a
text, it is given one without them. Pure. Well-formed JSON costs nothing: all of this is for after
a failed attempt.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

import msgspec

# Every escape is matched, so that the backslash of another one is not taken for the first byte.
_ESCAPE: Final = re.compile(
    rb"\\(?:(u[dD][89abAB][0-9a-fA-F]{2})(?:\\u[dD][c-fC-F][0-9a-fA-F]{2})?"
    rb"|(u[dD][c-fC-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_ESCAPE_BYTES: Final = 6
_REPLACEMENT: Final = rb"\ufffd"
_SHAPE = TypeVar("_SHAPE")


def decode(decoder: msgspec.json.Decoder[_SHAPE], data: bytes) -> _SHAPE:
    """Decode JSON, with U+FFFD in place of lone surrogates if there are any.

    Raises what `decoder.decode` does.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        mended = _without_lone(data, lambda _: _REPLACEMENT)
        if mended == data:
            raise
    return decoder.decode(mended)


def rebuilt(data: bytes, rebuild: Callable[[bytes], bytes]) -> bytes:
    """Return `rebuild(data)`, where lone surrogates are kept as they are.

    `rebuild` gets escapes that msgspec accepts in their place, and must copy them.
    """
    found = hidden(data)
    return rebuild(data) if found is None else found.restored(rebuild(found.data))


class Hidden(NamedTuple):
    """JSON whose lone surrogates are hidden behind a mark that msgspec accepts."""

    data: bytes
    mark: bytes

    def restored(self, part: bytes) -> bytes:
        """Return a part of it as it was."""
        return part.replace(self.mark, rb"\u")


def hidden(data: bytes) -> Hidden | None:
    """Hide the lone surrogates in JSON; None if there are none, or no mark is left for them."""
    marks = (rb"\ufdd%x" % number for number in range(16))
    lowered = data.lower()
    mark = next((it for it in marks if it not in lowered), None)
    if mark is None:
        return None
    found = _without_lone(data, lambda escape: mark + escape[2:])
    return None if found == data else Hidden(found, mark)


def _without_lone(data: bytes, substitute: Callable[[bytes], bytes]) -> bytes:
    def mended(found: re.Match[bytes]) -> bytes:
        escape = found[0]
        is_surrogate = found[1] is not None or found[2] is not None
        is_lone = is_surrogate and len(escape) == _ESCAPE_BYTES
        return substitute(escape) if is_lone else escape

    return _ESCAPE.sub(mended, data)
