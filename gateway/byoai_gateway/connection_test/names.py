"""Whether a model is among those that a provider offers, and which names are near it if not.

Pure, and bounded: a list is somebody else's, and the comparing of texts is dear.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

from byoai_gateway.connection_test.report import StageFailed

_LATEST: Final = ":latest"
"""What Ollama adds to a name without a tag."""
_MAX_COMPARED: Final = 64
_MAX_NAME: Final = 80
_SHOWN: Final = 3
_NEAR: Final = 0.5
_PARTS: Final = re.compile(r"[a-z]+|[0-9.]+")


def check_offered(name: str, offered: Sequence[str], where: str) -> str:
    """Return a sentence that says that the model is there.

    Raises:
        StageFailed: it is not; near names are suggested.
    """
    if name in offered or name + _LATEST in offered:
        return f"{where} has the model {name!r}"
    if not offered:
        sentence = f"{where} lists no models at all; load one there, then test again"
        raise StageFailed("model_not_found", sentence)
    close = near(name, offered)
    advice = f"did you mean {_listed(close)}?" if close else "choose one of those that it lists"
    raise StageFailed("model_not_found", f"{where} does not have the model {name!r}; {advice}")


def near(name: str, offered: Sequence[str]) -> list[str]:
    """The names most like this one, the nearest first; none when nothing is like it."""
    wanted = name.lower()[:_MAX_NAME]
    parts = frozenset(_PARTS.findall(wanted))
    likely = sorted(
        (it for it in offered if len(it) <= _MAX_NAME),
        key=lambda it: len(parts.intersection(_PARTS.findall(it.lower()))),
        reverse=True,
    )
    by_lower = {it.lower(): it for it in reversed(likely[:_MAX_COMPARED])}
    # A name is often given without whose model it is: `gpt-4o` for `openai/gpt-4o`.
    bare = [lower for lower in by_lower if lower.rpartition("/")[2] == wanted]
    close = get_close_matches(wanted, list(by_lower), n=_SHOWN, cutoff=_NEAR)
    return [by_lower[it] for it in dict.fromkeys([*bare, *close])][:_SHOWN]


def _listed(names: Sequence[str]) -> str:
    return " or ".join(repr(it) for it in names)
