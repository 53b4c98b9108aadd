import pytest

from byoai_gateway.router.agent_choice import Candidate, choose_agent

A, B, C = Candidate("a"), Candidate("b"), Candidate("c")
DOWN, OTHER_MODEL = Candidate("a", is_down=True), Candidate("a", has_model=False)
BUSY = Candidate("a", load=0.5)

NONE: dict[str, float] = {}
OPEN, DUE = 20.0, 0.0


@pytest.mark.parametrize(
    ("candidates", "waits", "tried", "chosen"),
    [
        pytest.param((), NONE, (), None, id="no agent"),
        pytest.param((B, A), NONE, (), "a", id="all the same: always in one order"),
        pytest.param((BUSY, B), NONE, (), "b", id="the least load"),
        pytest.param((DOWN, B), NONE, (), "b", id="its model server answers"),
        pytest.param((OTHER_MODEL, B), NONE, (), "b", id="it has the model"),
        pytest.param((DOWN, Candidate("b", has_model=False)), NONE, (), "b", id="health first"),
        pytest.param((DOWN,), NONE, (), "a", id="down, but there is no other"),
        pytest.param((A, B), {"a": OPEN}, (), "b", id="an open breaker"),
        pytest.param((A, B), {"a": OPEN, "b": OPEN}, (), None, id="all breakers open"),
        pytest.param((A, B), {"b": DUE}, (), "b", id="a probe that is due"),
        pytest.param((Candidate("a", load=1), B), {"a": DUE}, (), "a", id="a probe despite load"),
        pytest.param((DOWN, B), {"a": DUE}, (), "b", id="no probe of one that says it is down"),
        pytest.param((DOWN, B), {"a": DUE, "b": OPEN}, (), "a", id="unless there is no other"),
        pytest.param((A, B), NONE, ("a",), "b", id="not the one that failed this request"),
        pytest.param((A, B), {"b": OPEN}, ("a",), "a", id="unless there is no other to ask"),
        pytest.param((A, B, C), {"b": DUE}, ("a", "b"), "c", id="of three, the last"),
    ],
)
def test_which_agent_is_asked(
    candidates: tuple[Candidate, ...],
    waits: dict[str, float],
    tried: tuple[str, ...],
    chosen: str | None,
) -> None:
    assert choose_agent(candidates, waits.get, tried, may_probe=True) == chosen


def test_a_request_that_cannot_be_sent_again_is_no_probe_if_there_is_another_agent() -> None:
    waits = {"a": DUE}
    assert choose_agent((A, B), waits.get, (), may_probe=False) == "b"
    assert choose_agent((A,), waits.get, (), may_probe=False) == "a"
