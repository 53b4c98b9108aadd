"""Writes `docs/fidelity.md`: what may differ through the gateway, and why."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fidelity.cases import CASES
from fidelity.comparison import allowed
from fidelity.differences import ALLOWED
from fidelity.model import Difference, Route

HEAD: Final = """\
# What the router changes, and why

`tests/fidelity` sends each of {cases} requests straight to a scripted provider and then through
the gateway on every route: the default provider, OpenRouter, a tunnel and a self-hosted URL. It
compares status, headers, body bytes, how the answer ended, what the provider received, and what
the official `openai` client raises. Everything must be equal, except for what this page lists, and
what it lists must show. It is generated from the allow-list: `make fidelity-table`.

## On every answer

| what | why |
|---|---|
{general}
## The allow-list

| name | what | why | routes | cases |
|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """What may differ on every answer."""

    what: str
    why: str


RULES: Final = (
    Rule(
        "headers of one connection (`date`, `server`, framing) are the gateway's; `x-byoai-*` and "
        "`x-request-id` (`request-id` on `/v1/messages`) are added, and the provider's id comes as "
        "`x-byoai-provider-request-id`",
        "They belong to a connection, or to the gateway.",
    ),
    Rule(
        "a stream says `x-accel-buffering: no`",
        "nginx holds streams back otherwise.",
    ),
    Rule(
        "comments and blank lines between the events of a stream are added, and removed",
        "They keep a connection alive and carry no data.",
    ),
    Rule(
        "an error may have members that the provider did not send, never fewer, and never other "
        "values",
        "Clients read `message`, `type`, `param` and `code`; those that are missing are filled in.",
    ),
    Rule(
        "requests carry the provider's key, and of the client's headers only those that "
        "[router.md](router.md) names",
        "The client's token is for the gateway.",
    ),
)


def page() -> str:
    """The whole page."""
    rows = [row(difference) for difference in ALLOWED]
    general = "".join(f"| {rule.what} | {rule.why} |\n" for rule in RULES)
    return HEAD.format(cases=len(CASES), general=general) + "".join(rows)


def row(difference: Difference) -> str:
    """One entry: where it is allowed, and in how many cases."""
    places = [
        (case, route) for case in CASES for route in Route if difference in allowed(case, route)
    ]
    routes = where({route for _, route in places})
    count = len({case.name for case, _ in places})
    return f"| `{difference.name}` | {difference.what} | {difference.why} | {routes} | {count} |\n"


def where(routes: Iterable[Route]) -> str:
    """The routes, in words."""
    found = set(routes)
    if found == set(Route):
        return "all"
    return ", ".join(route.value for route in Route if route in found)


if __name__ == "__main__":
    print(page(), end="")
