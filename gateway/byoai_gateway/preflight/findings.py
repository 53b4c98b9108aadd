"""What a check found, and how it is shown: as lines for people, as JSON for programs.

Pure. A finding names the setting that it is about; no key, token or password is in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

_INDENT: Final = " " * 9


class Verdict(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one setting."""

    setting: str
    verdict: Verdict
    message: str
    """What was found."""
    fix: str | None = None
    """What to do about it."""
    duration_ms: int | None = None
    """How long it took to find out; None if nothing was tried."""


def passed(setting: str, message: str) -> Finding:
    """Make a finding that asks for nothing."""
    return Finding(setting, Verdict.OK, message)


def doubtful(setting: str, message: str, fix: str) -> Finding:
    """Make a finding that a gateway can live with."""
    return Finding(setting, Verdict.WARNING, message, fix)


def failed(setting: str, message: str, fix: str) -> Finding:
    """Make a finding that keeps something from working."""
    return Finding(setting, Verdict.FAILED, message, fix)


def is_sound(findings: Sequence[Finding]) -> bool:
    """Whether nothing failed."""
    return all(it.verdict is not Verdict.FAILED for it in findings)


def as_text(findings: Sequence[Finding]) -> str:
    """Write one line for each finding, and below it what to do."""
    lines: list[str] = []
    for it in findings:
        took = "" if it.duration_ms is None else f" ({it.duration_ms} ms)"
        lines.append(f"{it.verdict.value:<8} {it.setting}: {it.message}{took}")
        if it.fix is not None:
            lines.append(f"{_INDENT}{it.fix}")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> str:
    """Write all of it as one JSON object."""
    shown = {
        "ok": is_sound(findings),
        "findings": [
            {
                "setting": it.setting,
                "status": it.verdict.value,
                "message": it.message,
                "fix": it.fix,
                "durationMs": it.duration_ms,
            }
            for it in findings
        ],
    }
    return msgspec.json.encode(shown).decode()
