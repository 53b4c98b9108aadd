"""Finds what only the garbage collector would free: objects of ours in reference cycles.

Programs of ours run it seldom (`runtime.run`), and what holds a TLS session costs dozens of
kilobytes: whatever is kept by such a cycle looks like a leak. SQLAlchemy's objects count as ours,
because statements of ours make them: an operator (`&`, `|`, `~`) on a condition leaves the
condition in a cycle, and so does `in_` with values; `and_`, `or_` and `in_` with a query do not.
"""

import gc
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from byoai_shared.link.accept import PlacedSocket

_OURS: Final = ("byoai_", "sqlalchemy.")


@contextmanager
def cyclic_garbage() -> Generator[Counter[str]]:
    """Count, by their types, our objects that what happens in the block leaves in cycles.

    The count is made at the block's end. What is still in use is not garbage, and not counted:
    let the loop settle before. asyncio's own transports are in cycles and hold their sockets, so
    accepted sockets are left out; uvloop's transports are not.
    """
    found: Counter[str] = Counter()
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        garbage: list[object] = gc.garbage
        types = [type(one) for one in garbage if type(one) is not PlacedSocket]
        found.update(it.__qualname__ for it in types if it.__module__.startswith(_OURS))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()
        if was_enabled:
            gc.enable()
