"""Which spellings of a field's name a lenient reader takes for the same name.

Readers differ: Go's `encoding/json` ignores case, and takes U+017F for an s; others compare upper
case, turn camelCase into snake_case, stop at a NUL, trim blanks, or read `name[]` as a list. Two
names with the same folded form may be one name somewhere.
"""

import unicodedata
from functools import lru_cache
from typing import Final

MODEL: Final = "model"
_MAX_REMEMBERED: Final = 64
"""Characters: what is remembered of hostile names stays small."""
_NOT_ALPHANUMERIC: Final = {code: None for code in range(128) if not chr(code).isalnum()}


def folded(name: str) -> str:
    """Return what is left of a name without case, width, compatibility forms and punctuation."""
    return _remembered(name) if len(name) <= _MAX_REMEMBERED else _folded(name)


def _folded(name: str) -> str:
    if name.isascii():
        return name.translate(_NOT_ALPHANUMERIC).lower()
    # Upper case first: U+0131 (dotless i) has an upper-case form that it shares with i.
    plain = unicodedata.normalize("NFKC", name).upper().casefold()
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", plain)))


_remembered: Final = lru_cache(maxsize=4096)(_folded)
"""The same few names come with every request."""


def root(name: str) -> str:
    """Return the field that a form's `name[]` or `name[key]` is a part of, for some readers."""
    return name.partition("[")[0]
