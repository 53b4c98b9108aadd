"""Why a request's body is refused.

UnreadableBody     the body could be read in two ways, or is not what it must be
└── NotJson        the body is not JSON at all
"""

from typing import Final

from byoai_shared.errors import ByoaiError

_SHOWN: Final = 40
"""Characters of a name that a client sent."""


class UnreadableBody(ByoaiError):
    """A body that cannot be read in exactly one way; `param` is the field at fault, if one is."""

    def __init__(self, reason: str, *, param: str | None = None) -> None:
        super().__init__(reason)
        self.param = param


class NotJson(UnreadableBody):
    """A body that is not JSON."""

    def __init__(self) -> None:
        super().__init__("the body is not JSON")


def given_twice(name: str) -> UnreadableBody:
    """Return the error for a field that may be given once."""
    return UnreadableBody(f"the body has more than one field {name!r}; send one", param=name)


def spelled_otherwise(name: str, spelling: str) -> UnreadableBody:
    """Return the error for a second spelling of a field's name."""
    return UnreadableBody(
        f"the body has a field {spelling[:_SHOWN]!a}, which some readers take for {name!r}; "
        f"send exactly one field, named {name!r}",
        param=name,
    )
