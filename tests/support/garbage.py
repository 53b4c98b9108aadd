"""Finds what only the garbage collector would free: objects of ours in reference cycles.

Programs of ours run it seldom (`runtime.run`), and what holds a TLS session costs dozens of
kilobytes: whatever is kept by such a cycle looks like a leak.
"""

import gc
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def cyclic_garbage() -> Generator[Counter[str]]:
    """Count, by their types, our objects that what happens in the block leaves in cycles.

    The count is made at the block's end. What is still in use is not garbage, and not counted:
    let the loop settle before.
    """
    found: Counter[str] = Counter()
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        types = [type(one) for one in gc.garbage]
        found.update(it.__qualname__ for it in types if it.__module__.startswith("byoai_"))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()
        if was_enabled:
            gc.enable()
