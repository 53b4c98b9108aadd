"""What a test's code logs, read back as an operator's tools would."""

import io
from typing import Any

import msgspec


class Logged:
    """The log of one test, in JSON lines."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        """All of it."""
        return self.stream.getvalue()

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The lines of one event."""
        found = [msgspec.json.decode(it) for it in self.text.splitlines()]
        return [it for it in found if it["event"] == event]
