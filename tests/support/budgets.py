"""Fills the room that all requests share, as other users would."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from byoai_gateway.router.keeping import SHARES, Budget


@contextmanager
def occupied(budget: Budget, left: int) -> Generator[None]:
    """Let other users hold all of a budget but `left` bytes, which is a share at most."""
    with ExitStack() as others:
        for number in range(SHARES - 1):
            others.enter_context(budget.hold(f"other{number}", budget.share))
        others.enter_context(budget.hold("other", budget.share - left))
        yield
