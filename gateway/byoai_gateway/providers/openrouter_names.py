"""What is known of the models that OpenRouter has for a key: an `Offer`.

Its list leaves out presets, the routing that may be added to any name, and what writes no text.
Pure.
"""

import re
from dataclasses import dataclass
from typing import Final

_ROUTED: Final = (":exacto", ":floor", ":nitro", ":online")
"""What may be added to any model's name without a list knowing of it."""
_ALIAS: Final = "~"
"""Begins a name that stands for the newest model of a family."""
_PRESET: Final = "@preset/"
_SHAPE: Final = re.compile(r"~?[^\s/]+/\S+")
"""`vendor/model`, with or without a variant."""


def is_preset(name: str) -> bool:
    """Whether a name is, or ends with, a preset of the user's account."""
    return _PRESET in name


def without_routing(name: str) -> str:
    """Return the name that a list has for one with routing added."""
    for suffix in _ROUTED:
        name = name.removesuffix(suffix)
    return name


@dataclass(frozen=True, slots=True)
class OpenRouterOffer:
    """The models of a key, as far as they are known."""

    names: tuple[str, ...] = ()
    is_complete: bool = False
    takes_any: bool = False
    """For endpoints whose models are not in the list."""

    @property
    def stand_in(self) -> str | None:
        """See `Offer`; the account has a default of its own."""
        return None

    @property
    def is_authoritative(self) -> bool:
        """See `Offer`."""
        return False

    def has(self, name: str) -> bool:
        """See `Offer`."""
        return name in self.names or without_routing(name) in self.names or is_preset(name)

    def may_have(self, name: str) -> bool:
        """See `Offer`; without a list, any name of OpenRouter's form."""
        if self.takes_any or name.startswith(_ALIAS):
            return True
        return not self.is_complete and _SHAPE.fullmatch(name) is not None
