"""An agent's errors, read as its gateway reads them: what may be repeated, and what is said."""

import pytest

from byoai_gateway.providers.agent_failures import failure_of_agent
from byoai_gateway.router.classify import failure_of_status
from byoai_gateway.router.decision import GiveUp, Progress, Retry, decide
from byoai_gateway.router.failures import FailureKind
from byoai_gateway.router.upstream import ProviderName
from byoai_shared.agent_errors import AgentErrorCode, Stage
from byoai_shared.api_errors import error_body

FRESH = Progress(retries_left=1, may_fall_back=False, committed=False)
STATUSES = {
    AgentErrorCode.INVALID_AUTHENTICATION_KEY: (401, FailureKind.KEY_REFUSED),
    AgentErrorCode.NOT_FOUND: (404, FailureKind.REJECTED),
    AgentErrorCode.INVALID_BODY: (400, FailureKind.REJECTED),
    AgentErrorCode.MODEL_NOT_FOUND: (404, FailureKind.MODEL_NOT_FOUND),
    AgentErrorCode.AGENT_BUSY: (429, FailureKind.TUNNEL_BUSY),
    AgentErrorCode.UPSTREAM_UNREACHABLE: (502, FailureKind.UNREACHABLE),
    AgentErrorCode.UPSTREAM_TIMEOUT: (504, FailureKind.FIRST_TOKEN_TIMEOUT),
    AgentErrorCode.UPSTREAM_DISCONNECTED: (502, FailureKind.CONNECTION_LOST),
    AgentErrorCode.UPSTREAM_PROTOCOL_ERROR: (502, FailureKind.MALFORMED),
}


def test_the_table_has_every_code() -> None:
    assert STATUSES.keys() == set(AgentErrorCode)


@pytest.mark.parametrize("code", AgentErrorCode)
def test_only_what_was_not_sent_is_repeated(code: AgentErrorCode) -> None:
    status, kind = STATUSES[code]
    body = error_body(status, code.value, "the agent's own sentence")
    headers = ((b"retry-after", b"1"),)
    told = failure_of_status(ProviderName.SELF_HOSTED, status, headers, body)
    failure = failure_of_agent(told, code.value.encode(), "the agent's own sentence")
    assert (failure.kind, failure.status) == (kind, told.status)
    step = decide(failure, FRESH)
    if code.stage is Stage.SENT:
        assert step == GiveUp()
    elif kind in {FailureKind.TUNNEL_BUSY, FailureKind.UNREACHABLE}:
        assert step == Retry(1.0)
        assert failure.error.message == "the agent's own sentence"


@pytest.mark.parametrize(
    "code", [b"internal_error", b"upstream_error", b"of-a-newer-agent", b"\xff"]
)
def test_a_code_that_is_not_known_may_have_been_processed(code: bytes) -> None:
    told = failure_of_status(ProviderName.SELF_HOSTED, 500, (), b"")
    failure = failure_of_agent(told, code, "it broke")
    assert failure.kind is FailureKind.CONNECTION_LOST
    assert decide(failure, FRESH) == GiveUp()
