"""Runs a library's cases and prints what the application saw, one JSON line a case.

It has only the standard library: the environments of the clients hold nothing of ours.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TypeVar

LONGEST_S = 30.0
TEXT = "Hello there"
CALLS = [("get_weather", {"city": "Paris"}), ("get_time", {"zone": "CET"})]
CITY = {"city": "Paris", "population": 2100000}
VECTOR = [0.25, -0.5, 1.0]
SURVIVED = ("503", "408", "409", "500", "504")


@dataclass(frozen=True, slots=True)
class Spec:
    """The route under test, as the driver gives it on the command line."""

    base_url: str
    key: str
    wrong_key: str
    model: str
    png: str
    """A picture in base64."""
    prefix: str
    """Library and route; with the case's name it makes the tag."""

    def prompt(self, does: str, case: str) -> str:
        """A prompt that orders the provider's answer and names the case."""
        return f"[[{does} {self.prefix}/{case}]]"


Case = Callable[[], Awaitable[object]]
Raised = TypeVar("Raised", bound=BaseException)


def spec() -> Spec:
    """Read the command line."""
    return Spec(**json.loads(sys.argv[1]))


def equal(found: object, wanted: object) -> None:
    """Compare what the library returned."""
    if found != wanted:
        raise AssertionError(f"{found!r} instead of {wanted!r}")


async def raises(error: type[Raised], call: Awaitable[object]) -> Raised:
    """The call must end with exactly this class of the library; returns the exception."""
    try:
        answer = await call
    except error as raised:
        if type(raised) is not error:
            raise AssertionError(f"{type(raised).__name__} instead of {error.__name__}") from raised
        return raised
    raise AssertionError(f"{answer!r} instead of {error.__name__}")


async def _report(name: str, case: Case) -> None:
    """Run one case."""
    problem = ""
    try:
        async with asyncio.timeout(LONGEST_S):
            await case()
    except Exception as error:  # noqa: BLE001 -- whatever a library raises is the case's result
        problem = f"{type(error).__name__}: {error}"
    print(json.dumps({"case": name, "problem": problem}), flush=True)


async def _report_all(cases: Mapping[str, Case]) -> None:
    """Run all cases at the same time: several wait for a Retry-After."""
    await asyncio.gather(*(_report(name, case) for name, case in cases.items()))


def run(distribution: str, cases: Mapping[str, Case]) -> None:
    """Print the library's version, then a line for each case."""
    print(json.dumps({"version": version(distribution)}), flush=True)
    asyncio.run(_report_all(cases))
