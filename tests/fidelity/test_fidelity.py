"""Each case straight at the provider and on every route: what differs is in the allow-list."""

from pathlib import Path

import pytest

from fidelity.cases import CASES
from fidelity.chain import STRAIGHT, Chain
from fidelity.comparison import allowed, mismatches
from fidelity.differences import ALLOWED
from fidelity.known_failures import KNOWN_FAILURES
from fidelity.model import Case, Route
from fidelity.table import page

TABLE = Path(__file__).parents[2] / "docs" / "fidelity.md"


def looked_at(case: Case, route: Route) -> object:
    """One case on one route, with its name."""
    name = f"{case.name} @ {route.value}"
    is_known = not KNOWN_FAILURES.isdisjoint({case.name, name})
    marks = [pytest.mark.xfail(reason="known", strict=True)] if is_known else []
    return pytest.param(case, route, id=name, marks=marks)


@pytest.mark.parametrize(
    ("case", "route"), [looked_at(case, route) for case in CASES for route in Route]
)
@pytest.mark.asyncio(loop_scope="session")
async def test_only_what_is_allowed_differs(chain: Chain, case: Case, route: Route) -> None:
    view = await chain.views(case)
    found = mismatches(case, route, view[STRAIGHT], view[route])
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert len(names) >= 120


def test_every_allowed_difference_is_needed() -> None:
    used = {it.name for case in CASES for route in Route for it in allowed(case, route)}
    assert {it.name for it in ALLOWED} == used


def test_the_table_shows_the_allow_list_as_it_is() -> None:
    assert TABLE.read_text() == page(), "run `make fidelity-table`"
