"""A string that does not show itself: the only form in which we hold a secret.

It refuses to be printed, formatted, hashed, copied or pickled; `reveal()` is the one way out,
easy to search for.
"""

import hmac
from typing import NoReturn

_SHORTEST_QUOTED = 12


class Secret:
    """A secret text: printing, formatting, logging and pickling it give nothing away."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the text itself, for the one place that needs it."""
        return self._value

    def matches(self, candidate: str) -> bool:
        """Compare in a time that does not depend on where the texts differ."""
        return hmac.compare_digest(_bytes(self._value), _bytes(candidate))

    def is_in(self, text: bytes | memoryview) -> bool:
        """Say whether a text quotes it; a value of fewer than 12 characters is not looked for."""
        return len(self._value) >= _SHORTEST_QUOTED and _bytes(self._value) in bytes(text)

    def __repr__(self) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._value)

    __hash__ = None  # type: ignore[assignment] # a hash would be a way to test guesses

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is neither copied nor pickled")


def _bytes(text: str) -> bytes:
    # A candidate comes from the network: a lone surrogate in it must differ, not raise.
    return text.encode("utf-8", "surrogatepass")
