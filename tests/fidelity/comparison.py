"""Compares what was seen through the gateway with what is expected of it."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Final

from fidelity.differences import NOT_TO_REPEAT, automatic
from fidelity.model import Case, Difference, Outcome, Route, Seen

EMPTY: Final[Mapping[str, Any]] = {}


def allowed(case: Case, route: Route) -> tuple[Difference, ...]:
    """The differences that a case may show on a route, in the order in which they arise."""
    named = (*automatic(case, route), *case.differs.get(route, ()))
    return (*named, NOT_TO_REPEAT) if any(it.is_final for it in named) else named


def mismatches(case: Case, route: Route, straight: Seen, through: Seen) -> list[str]:
    """Every difference that is not allowed, and every allowed one that is not there."""
    differences = allowed(case, route)
    found = compared(expected(case, straight, differences), through)
    if found:
        return found
    return [
        f"the allowed difference {it.name!r} is not there"
        for it in differences
        if not compared(
            expected(case, straight, [other for other in differences if other is not it]), through
        )
    ]


def expected(case: Case, straight: Seen, differences: Iterable[Difference]) -> Seen:
    """What is to be seen through the gateway."""
    view = straight
    for difference in differences:
        view = difference.applied(case, view)
    return view


def compared(wanted: Seen, through: Seen) -> list[str]:
    """Where two views differ. An error may say more than is expected of it, not less."""
    found: list[str] = []
    for field in fields(Seen):
        name = field.name
        left, right = getattr(wanted, name), getattr(through, name)
        if name == "error":
            found += compared_members(left, right)
        elif name == "outcome":
            found += compared_outcomes(left, right)
        elif left != right:
            found.append(f"{name}: expected {short(left)}, got {short(right)}")
    return found


def compared_members(
    expected: Mapping[str, Any] | None, got: Mapping[str, Any] | None
) -> list[str]:
    """Where the members of two errors differ; null is no member."""
    if (expected is None) != (got is None):
        return [f"error: expected {short(expected)}, got {short(got)}"]
    there = got or EMPTY
    wanted = {name: value for name, value in (expected or EMPTY).items() if value is not None}
    return [
        f"{name}: expected {short(value)}, got {short(there.get(name))}"
        for name, value in wanted.items()
        if not (name in there and value == there[name])
    ]


def compared_outcomes(expected: Outcome | None, got: Outcome | None) -> list[str]:
    """Where the official client sees two errors differently."""
    if expected is None or got is None:
        return [] if expected is got else ["the official client was asked only once"]
    found: list[str] = []
    for field in fields(Outcome):
        left, right = getattr(expected, field.name), getattr(got, field.name)
        is_filled = field.name in {"code", "type", "param"} and left is None
        if left != right and not is_filled:
            found.append(f"official client's {field.name}: expected {left!r}, got {right!r}")
    return found


def short(value: object) -> str:
    """A value as a line."""
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:300]} … {text[-80:]} ({len(text)} characters)"
