"""The recipes of docs/operations.md revoke what was revoked, and nothing that is healthy."""

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
OPERATIONS = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
_RECIPE = re.compile(r"^```\n(jq .*?)^```$", re.DOTALL | re.MULTILINE)


def events_of(recipe: str) -> set[str]:
    """The log events that a recipe selects."""
    return set(re.findall(r'\.event == "([^"]+)"', recipe))


def test_the_restore_recipes_select_revocations_and_never_a_refused_old_key() -> None:
    """A refused old key is logged of healthy agents too: a backup of a host is enough."""
    revoked, locked = _RECIPE.findall(OPERATIONS)
    assert events_of(revoked) == {"tunnel.revoked", "agent.removed"}
    assert events_of(locked) == {"alert.agent_locked"}


def test_a_locked_agent_is_named_with_its_tunnel() -> None:
    """A lock is an agent's: the recipe must not end the tunnel with its other agents."""
    _, locked = _RECIPE.findall(OPERATIONS)
    assert '.tunnel_id + "/" + .agent_id' in locked
    assert "then .tunnel_id" not in locked


def test_the_recipes_select_events_that_the_gateway_logs() -> None:
    sources = (PROJECT / "gateway" / "byoai_gateway").rglob("*.py")
    logged = "".join(path.read_text(encoding="utf-8") for path in sources)
    for recipe in _RECIPE.findall(OPERATIONS):
        assert {it for it in events_of(recipe) if f'"{it}"' not in logged} == set()
