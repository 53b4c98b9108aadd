from byoai_gateway.assertions import ReplayGuard
from byoai_shared.assertion import Assertion
from byoai_shared.identity import AgentIdentity


def assertion(token_id: str, agent_id: str = "one", expires_at: int = 1060) -> Assertion:
    return Assertion(AgentIdentity("a" * 26, agent_id), token_id, expires_at)


def test_an_assertion_is_taken_once() -> None:
    guard = ReplayGuard()
    assert guard.take(assertion("x"), 1000)
    assert not guard.take(assertion("x"), 1000)
    assert guard.take(assertion("y"), 1000)


def test_ids_of_different_agents_do_not_collide() -> None:
    guard = ReplayGuard()
    assert guard.take(assertion("x", "one"), 1000)
    assert guard.take(assertion("x", "two"), 1000)


def test_what_has_expired_makes_room_and_nothing_else_does() -> None:
    guard = ReplayGuard(limit=2)
    assert guard.take(assertion("x", expires_at=1060), 1000)
    assert guard.take(assertion("y", expires_at=1090), 1000)
    assert not guard.take(assertion("z", expires_at=1090), 1069)
    assert guard.take(assertion("z", expires_at=1190), 1070)
    assert not guard.take(assertion("y", expires_at=1090), 1070)
