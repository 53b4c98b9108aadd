"""What a tunnel's agents report of their models, as far as a request may go by it. Pure."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from byoai_gateway.model_choice import ServerOffer
from byoai_gateway.model_names import is_model_name
from byoai_shared.protocol.control import MAX_STATUS_BYTES, Status, UpstreamHealth

_MOST_REPORTED: Final = 64
"""Names in one report; an agent that has more leaves out the others."""


def reports(by_agent: Mapping[str, Status]) -> list[Status]:
    """Return what each agent reports, in an order that does not change between two requests.

    Agents whose model server answers come first.
    """
    if len(by_agent) < 2:
        return list(by_agent.values())
    order = sorted(by_agent, key=lambda it: (by_agent[it].health is UpstreamHealth.DOWN, it))
    return [by_agent[it] for it in order]


def reported(statuses: Sequence[Status], registered: str) -> ServerOffer:
    """Return what a tunnel offers; `registered` is the model that it was registered for.

    An agent that reports no names is older, or its model server is down: then others may be
    there.
    """
    return _offer(tuple(status.models for status in statuses), registered)


@lru_cache(maxsize=4096)
def _offer(lists: tuple[tuple[str, ...], ...], registered: str) -> ServerOffer:
    """Read lists of names; they come with every request and change seldom."""
    names = (name for models in lists for name in models if is_model_name(name))
    is_complete = bool(lists) and not any(_may_be_cut(models) for models in lists)
    return ServerOffer(tuple(dict.fromkeys(names)), is_complete, registered)


def _may_be_cut(models: Sequence[str]) -> bool:
    count = len(models)
    size = sum(len(name.encode()) for name in models)
    # An agent drops a quarter of its names, or more, until its report fits.
    return count == 0 or count >= _MOST_REPORTED or size > MAX_STATUS_BYTES // 2
