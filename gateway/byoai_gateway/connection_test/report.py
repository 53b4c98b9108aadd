"""What a test of a connection found, as values.

A message is one sentence for the user: what was found and, when a stage failed, what to do next.
"""

from dataclasses import dataclass
from enum import StrEnum

from byoai_gateway.router.upstream import ProviderName
from byoai_shared.errors import ByoaiError


class Stage(StrEnum):
    """The stages, in their order; after one that failed the others are skipped."""

    REACHABLE = "reachable"
    AUTHENTICATED = "authenticated"
    MODEL = "model"
    ANSWER = "answer"
    """One streamed token came."""


class StageStatus(StrEnum):
    """How a stage ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class StageFailed(ByoaiError):
    """A stage showed what is wrong; `code` is for programs, the sentence for people."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class StageSkipped(ByoaiError):
    """A stage cannot tell anything, which is no fault; the sentence says why."""


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage found."""

    stage: Stage
    status: StageStatus
    latency_ms: int | None
    """None for a stage that was skipped."""
    message: str
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a whole test found: always every stage."""

    provider: ProviderName
    model: str | None
    """What was asked for an answer, as the user would name it."""
    latency_ms: int
    stages: tuple[StageReport, ...]

    @property
    def is_ok(self) -> bool:
        """Whether requests with these settings can be expected to work."""
        return all(it.status is not StageStatus.FAILED for it in self.stages)
