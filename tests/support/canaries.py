"""Secrets and prompts that no log may ever contain, and the search for them."""

import re
from pathlib import Path

PROMPT = "canary-prompt-5c1d9e: what is the meaning of this"
"""Goes to the model in every system test."""

ANYTHING_SECRET = re.compile(
    r"eyJ[\w-]{8,}\.[\w-]{8,}"  # a JWT, whoever's
    r"|byoai1_[\w-]{8,}"  # a join code
    r"|PRIVATE KEY"
    r"|Bearer [\w-]{8,}"
)
"""What a secret looks like, for those that no test has seen."""


class Canaries:
    """The secrets of one run and where its logs are."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._secrets = {PROMPT}

    def add(self, *secrets: str) -> None:
        """Remember what was secret."""
        self._secrets.update(secrets)

    def logs(self) -> list[Path]:
        """Every log of the run so far; what the demo says to its user is none."""
        return sorted(path for path in self._directory.rglob("*.log") if path.name != "demo.log")

    def leaks(self) -> list[str]:
        """Where a secret stands in a log; the secret itself is not repeated."""
        return [
            f"{path.relative_to(self._directory)}:{number}"
            for path in self.logs()
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
            if ANYTHING_SECRET.search(line) or any(secret in line for secret in self._secrets)
        ]
