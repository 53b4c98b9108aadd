"""The official Python client before sixteen transient faults, on every route.

Each fault is shown once, then the provider is sound again. A route is as good as none in between
when the client survives what it survives directly, with no more requests at the provider.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table

from demo.processes import output_of
from support.provider import Request
from support.provider_script import MODEL

from .answers import Answers
from .faults import FAULTS
from .libraries import ENVIRONMENTS
from .routes import DIRECT, Route

COMMAND: Final = (
    str(ENVIRONMENTS / "openai" / "bin" / "python"),
    "-m",
    "tests.clients.python.openai_faults",
)
LONGEST_S: Final = 180.0
TO_SURVIVE: Final = 14


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one fault led to."""

    problem: str
    """The client's exception; empty when it got its answer."""
    requests: int
    """At the provider."""
    repeats: int
    """Requests among them that the client did not announce as retries of its own."""


Outcomes = dict[tuple[str, str], Outcome]
"""By route and fault."""


async def outcomes_of(routes: dict[str, Route], answers: Answers, *, is_streamed: bool) -> Outcomes:
    """Run every fault on every route, all at the same time: several wait for a Retry-After."""
    form = "faults-streamed" if is_streamed else "faults-whole"
    orders = [
        {
            "base_url": route.base_url,
            "key": route.key,
            "model": MODEL,
            "stream": is_streamed,
            "prompt": f"[[once:{fault} {form}/{route.name}/{fault}]]",
        }
        for route in routes.values()
        for fault in FAULTS
    ]
    output = await output_of([*COMMAND, json.dumps(orders)], timeout_s=LONGEST_S)
    problems: list[str] = json.loads(output)
    names = [(route, fault) for route in routes for fault in FAULTS]
    return {
        (route, fault): outcome_of(problem, answers.seen[f"{form}/{route}/{fault}"])
        for (route, fault), problem in zip(names, problems, strict=True)
    }


def outcome_of(problem: str, requests: Sequence[Request]) -> Outcome:
    """Count the requests; the client numbers its own retries."""
    tries = {request.headers.get("x-stainless-retry-count") for request in requests}
    return Outcome(problem, len(requests), len(requests) - len(tries))


def table_of(outcomes: Outcomes, *, is_streamed: bool) -> Table:
    """A row for each fault, a column for each route; the figures are requests at the provider."""
    routes = list(dict.fromkeys(route for route, _ in outcomes))
    form = "streamed" if is_streamed else "in one piece"
    table = Table(title=f"One transient fault, chat {form}: survived? requests at the provider")
    table.add_column("fault")
    for route in routes:
        table.add_column(route)
    for fault in FAULTS:
        table.add_row(fault, *(cell(outcomes[route, fault]) for route in routes))
    counts = [str(survived(outcomes, route)) for route in routes]
    table.add_row(f"survived of {len(FAULTS)}", *counts, style="bold")
    return table


def cell(outcome: Outcome) -> str:
    """Whether the client got its answer, and after how many requests."""
    return f"{'no' if outcome.problem else 'yes'} {outcome.requests}"


def survived(outcomes: Outcomes, route: str) -> int:
    """How many faults the client survived on this route."""
    return sum(not outcome.problem for (name, _), outcome in outcomes.items() if name == route)


def failures_of(outcomes: Outcomes) -> list[str]:
    """What misses the target, a sentence for each route and kind of failure."""
    failures: list[str] = []
    for route in dict.fromkeys(route for route, _ in outcomes):
        seen = {fault: outcomes[route, fault] for fault in FAULTS}
        lost = [fault for fault, it in seen.items() if it.problem]
        if len(FAULTS) - len(lost) < TO_SURVIVE:
            failures.append(
                f"{route}: survived {len(FAULTS) - len(lost)} of {len(FAULTS)} transient faults, "
                f"expected at least {TO_SURVIVE}; lost: {', '.join(lost)}"
            )
        more = [it for it in FAULTS if seen[it].requests > outcomes[DIRECT, it].requests]
        if more:
            failures.append(f"{route}: more requests than the client makes: {', '.join(more)}")
        repeated = [fault for fault, it in seen.items() if it.repeats]
        if repeated:
            failures.append(f"{route}: repeated, but not by the client: {', '.join(repeated)}")
    return failures
