"""Runs a library's script on one route; what the provider saw is part of each case's result."""

import json
from dataclasses import dataclass, field

from demo.processes import ProcessError, output_of
from support.provider_script import MODEL

from .answers import Answers
from .libraries import CASES, Library
from .openai_shapes import PNG
from .routes import Route

LONGEST_S = 180.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one library did on one route."""

    library: str
    route: str
    version: str = "?"
    problems: dict[str, str] = field(default_factory=dict[str, str])
    """By case; empty for a case that passed. Cases that the library lacks are missing."""


async def run(library: Library, route: Route, answers: Answers) -> Run:
    """Run all cases of one library and check what the provider saw of each."""
    prefix = f"{library.name.replace(' ', '-')}/{route.name}"
    spec = {
        "base_url": route.base_url,
        "key": route.key,
        "wrong_key": route.wrong_key,
        "model": MODEL,
        "png": PNG,
        "prefix": prefix,
    }
    expected = [case for case in CASES if case not in library.lacks]
    environ = {"NO_PROXY": "127.0.0.1", **library.environ}
    try:
        output = await output_of(
            [*library.command, json.dumps(spec)], environ=environ, timeout_s=LONGEST_S
        )
    except ProcessError as error:
        return Run(library.name, route.name, problems=dict.fromkeys(expected, str(error)))
    reported = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    problems = {it["case"]: it["problem"] for it in reported if "case" in it}
    version = next((it["version"] for it in reported if "version" in it), "?")
    for case in expected:
        own = problems.get(case, "the script did not report this case")
        requests = len(answers.seen[f"{prefix}/{case}"])
        problems[case] = own or provider_problem(case, requests, library, route)
    return Run(library.name, route.name, version, problems)


def provider_problem(case: str, requests: int, library: Library, route: Route) -> str:
    """What is wrong with the number of requests that the provider received, or nothing."""
    allowed = allowed_requests(case, library, route)
    if requests in allowed:
        return ""
    return f"the provider received {requests} requests, expected {allowed}"


def allowed_requests(case: str, library: Library, route: Route) -> tuple[int, ...]:
    """How many requests the provider may receive for a case."""
    if case == "wrong_key":
        return (0,) if route.is_gateway else (1,)
    if case == "abort" or case.startswith("survives_"):
        return (2,)
    if case == "rate_limit" and route.is_gateway and not library.numbers_its_tries:
        return (1, 2)  # the gateway makes its one retry for such a client
    return (1,)
