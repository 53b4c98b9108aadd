"""Which agent of a tunnel is asked: by health, model, breaker and load. Pure."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple


class Candidate(NamedTuple):
    """An agent that could answer a request, as far as it is known now."""

    agent_id: str
    is_down: bool = False
    """Whether it reports that its model server does not answer."""
    has_model: bool = True
    """Whether it may have the model; False only if it reports others."""
    load: float = 0.0
    """Requests that it has, per request that it takes at once."""


def choose_agent(
    candidates: Sequence[Candidate],
    wait_s: Callable[[str], float | None],
    tried: Collection[str],
    *,
    may_probe: bool,
) -> str | None:
    """Return the agent to ask; None if none of them may be asked.

    `wait_s` tells an agent's breaker: None while it is closed, 0 when one request may probe the
    agent, else how long it may not be asked. `tried` are the agents that failed this request.
    In this order: an agent that did not fail this request, whose model server answers, that has
    the model, that is due for a probe (a request that `may_probe` goes to another agent if the
    probe fails; any other request avoids it), that has the least load.
    """
    best: tuple[tuple[bool, bool, bool, bool, float, str], str] | None = None
    for it in candidates:
        left_s = wait_s(it.agent_id)
        if left_s is not None and left_s > 0:
            continue
        is_due = left_s is not None
        rank = (
            it.agent_id in tried,
            it.is_down,
            not it.has_model,
            is_due is not may_probe,
            it.load,
            it.agent_id,
        )
        if best is None or rank < best[0]:
            best = (rank, it.agent_id)
    return None if best is None else best[1]
