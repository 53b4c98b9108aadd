"""Which chains stand side by side, and which of them is to reach the targets."""

from collections.abc import Sequence
from dataclasses import dataclass

from .rows import ROUTER_ROWS, TUNNEL_ROWS, Row

DIRECT = "direct"
SSH = "ssh -R"
OURS = "ours"
LITELLM = "litellm"
ROUTER = "router"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One table."""

    title: str
    subject: str
    """The chain that is ours: the targets are its own, the ratios are to it."""
    chains: Sequence[str]
    rows: Sequence[Row]


COMPARISONS = (
    Comparison("to a model behind a tunnel", OURS, (DIRECT, SSH, OURS), TUNNEL_ROWS),
    Comparison("to the operator's own provider", ROUTER, (DIRECT, LITELLM, ROUTER), ROUTER_ROWS),
)


def measurements_of(chain: str) -> frozenset[str]:
    """What a table shows of a chain."""
    return frozenset(
        row.measurement
        for comparison in COMPARISONS
        if chain in comparison.chains
        for row in comparison.rows
    )
