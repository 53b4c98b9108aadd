"""One call of the API as a value.

From it the route is made and its part of the OpenAPI document, so that the document cannot say
what the program does not do.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import msgspec

from byoai_gateway.users import User

Body = TypeVar("Body", bound=msgspec.Struct)
Answer = TypeVar("Answer", bound=msgspec.Struct)


class NoBody(msgspec.Struct, frozen=True):
    """Of a call that takes none."""


class Access(StrEnum):
    """Who may make a call."""

    USER = "user"
    """With the main application's token."""
    AGENT = "agent"
    """With proof in the body."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request, apart from its body."""

    path: Mapping[str, str]
    """The values of the path's names."""
    address: str
    """What the client is counted by."""
    caller: User | None

    @property
    def user(self) -> User:
        """The user of a call with `Access.USER`."""
        assert self.caller is not None  # noqa: S101 -- such calls are authenticated before
        return self.caller


@dataclass(frozen=True, slots=True)
class Call(Generic[Body, Answer]):
    """What is called how, and what answers."""

    method: str
    path: str
    """With names in braces, as aiohttp and OpenAPI both write them."""
    summary: str
    access: Access
    takes: type[Body]
    """What stands in the body; of a call with GET, in the query."""
    gives: type[Answer]
    run: Callable[[Incoming, Body], Coroutine[Any, Any, Answer]]
    refusals: tuple[HTTPStatus, ...] = ()
    """Beyond those that every call of its access may get."""
    status: HTTPStatus = HTTPStatus.OK
    ends_with_client: bool = False
    """Whether it is broken off when its client hangs up: what is asked of others for nobody, and
    changes nothing. Every other call runs to its end."""

    @property
    def takes_body(self) -> bool:
        """Whether it reads a body."""
        return self.takes is not NoBody and self.method != "GET"

    @property
    def is_change(self) -> bool:
        """Whether a user changes or adds something, of which there may be so much in a minute.

        Not what only takes away: see `is_removal`.
        """
        return self.access is Access.USER and self.method == "POST"

    @property
    def is_removal(self) -> bool:
        """Whether a user removes something: counted by itself, also while the store is away."""
        return self.access is Access.USER and self.method == "DELETE"

    @property
    def may_say_who(self) -> bool:
        """Whether its body may be left out, and can but name the user."""
        return self.access is Access.USER and self.method != "GET" and not self.takes_body

    @property
    def takes_query(self) -> bool:
        """Whether it reads its query, and refuses what it does not know there."""
        return self.takes is not NoBody and self.method == "GET"


AnyCall = Call[Any, Any]
