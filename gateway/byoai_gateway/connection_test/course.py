"""Runs the stages of a test in their order, each within its time.

Cancelled, it stops where it is. It marks no setting, opens no breaker and writes no record:
nothing was saved that could be at fault.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Final, Protocol, assert_never

from byoai_gateway.connection_test.masking import without
from byoai_gateway.connection_test.report import (
    Report,
    Stage,
    StageFailed,
    StageReport,
    StageSkipped,
    StageStatus,
)
from byoai_gateway.connection_test.sentences import told, too_slow
from byoai_gateway.router.failures import AttemptFailed
from byoai_gateway.router.upstream import ProviderName
from byoai_shared.secret import Secret

LIMITS_S: Final[Mapping[Stage, float]] = {
    Stage.REACHABLE: 10.0,
    Stage.AUTHENTICATED: 10.0,
    Stage.MODEL: 10.0,
    Stage.ANSWER: 30.0,
}
"""Together they bound the whole test."""
_NOT_TRIED: Final = "not tried, because an earlier stage failed"
_UNSAID: Final = (
    "{what}; no more is said, because your key is so short that it stands in the words for it"
)
_SAID_INSTEAD: Final[Mapping[StageStatus, str]] = {
    StageStatus.PASSED: _UNSAID.format(what="this works"),
    StageStatus.SKIPPED: _UNSAID.format(what="this cannot be tested"),
    StageStatus.FAILED: _UNSAID.format(what="this does not work"),
}


class Probe(Protocol):
    """Knows how the stages are tried with one provider.

    Each returns a sentence about what it found, or raises `StageFailed`, `StageSkipped` or
    `AttemptFailed`; they are called in this order.
    """

    @property
    def provider(self) -> ProviderName:
        """Who is tested."""
        ...

    @property
    def model(self) -> str | None:
        """What is asked for an answer, as far as is known by now."""
        ...

    async def reachable(self) -> str:
        """Whether anything answers."""
        ...

    async def authenticated(self) -> str:
        """Whether it lets the user in."""
        ...

    async def has_model(self) -> str:
        """Whether it has the model."""
        ...

    async def answers(self) -> str:
        """Whether a token comes, by the way that requests go."""
        ...


async def run(
    probe: Probe, secret: Secret | None, limits_s: Mapping[Stage, float] = LIMITS_S
) -> Report:
    """Try every stage; no sentence of the report holds `secret`, whoever quoted it."""
    began_at = time.monotonic()
    reports: list[StageReport] = []
    for stage in Stage:
        if reports and reports[-1].status is StageStatus.FAILED:
            break
        reports.append(await _tried(probe, stage, limits_s[stage], secret))
    left = tuple(Stage)[len(reports) :]
    reports += [StageReport(it, StageStatus.SKIPPED, None, _NOT_TRIED) for it in left]
    return Report(probe.provider, probe.model, _ms_since(began_at), tuple(reports))


async def _tried(probe: Probe, stage: Stage, limit_s: float, secret: Secret | None) -> StageReport:
    began_at = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            found = await _try(probe, stage)
    except StageSkipped as skipped:
        message = _without(secret, str(skipped), StageStatus.SKIPPED)
        return StageReport(stage, StageStatus.SKIPPED, None, message)
    except StageFailed as error:
        failed = error.with_traceback(None)  # which holds this frame
    except AttemptFailed as error:
        failed = told(probe.provider, error)
    except TimeoutError:
        failed = too_slow(probe.provider, limit_s)
    else:
        message = _without(secret, found, StageStatus.PASSED)
        return StageReport(stage, StageStatus.PASSED, _ms_since(began_at), message)
    message = _without(secret, str(failed), StageStatus.FAILED)
    return StageReport(stage, StageStatus.FAILED, _ms_since(began_at), message, failed.code)


async def _try(probe: Probe, stage: Stage) -> str:
    match stage:
        case Stage.REACHABLE:
            return await probe.reachable()
        case Stage.AUTHENTICATED:
            return await probe.authenticated()
        case Stage.MODEL:
            return await probe.has_model()
        case Stage.ANSWER:
            return await probe.answers()
        case _:
            assert_never(stage)


def _without(secret: Secret | None, sentence: str, status: StageStatus) -> str:
    return without(secret, sentence, _SAID_INSTEAD[status])


def _ms_since(began_at: float) -> int:
    return max(0, round((time.monotonic() - began_at) * 1000))
