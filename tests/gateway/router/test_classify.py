from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_gateway.router.classify import (
    address_refused,
    agent_absent,
    breaker_open,
    connection_lost,
    endpoint_not_found,
    failure_of_error,
    failure_of_status,
    malformed,
    model_not_found,
    out_of_time,
    silent,
    timed_out,
    truncated,
    tunnel_busy,
    tunnel_throttled,
    unreachable,
    untrusted,
)
from byoai_gateway.router.failures import Failure
from byoai_gateway.router.failures import FailureKind as Kind
from byoai_gateway.router.upstream import ProviderName

DEFAULT, OPENROUTER, SELF_HOSTED = ProviderName


def said(message: str, **more: object) -> bytes:
    return msgspec.json.encode({"error": {"message": message, **more}})


@pytest.mark.parametrize(
    ("status", "body", "kind", "answered", "code"),
    [
        (301, b"", Kind.MALFORMED, 502, "malformed_answer"),
        (400, said("bad", code="context_length_exceeded"), Kind.REJECTED, 400,
         "context_length_exceeded"),
        (400, said("bad", type="exceed_context_size_error"), Kind.REJECTED, 400,
         "exceed_context_size_error"),
        (400, said("bad", type="invalid_request_error"), Kind.REJECTED, 400, "invalid_request"),
        (400, said("foo/bar is not a valid model ID", code=400), Kind.MODEL_NOT_FOUND, 400,
         "model_not_found"),
        (401, said("no such key"), Kind.KEY_REFUSED, 403, "key_refused"),
        (402, said("Insufficient credits"), Kind.CREDITS_SPENT, 402, "credits_spent"),
        (403, said("not yours"), Kind.FORBIDDEN, 403, "forbidden"),
        (403, said("flagged", metadata={"reasons": ["x"]}), Kind.REJECTED, 403, "moderation"),
        (403, said("no", code="content_policy_violation"), Kind.REJECTED, 403,
         "content_policy_violation"),
        (403, said("Key limit exceeded (monthly limit)"), Kind.CREDITS_SPENT, 403,
         "credits_spent"),
        (404, said("The model `x` does not exist."), Kind.MODEL_NOT_FOUND, 404, "model_not_found"),
        (404, said("gone", code="model_not_found"), Kind.MODEL_NOT_FOUND, 404, "model_not_found"),
        (404, b'{"error": "model \\"x\\" not found, try pulling it first"}',
         Kind.MODEL_NOT_FOUND, 404, "model_not_found"),
        (404, said("model: claude-x", type="not_found_error"), Kind.MODEL_NOT_FOUND, 404,
         "model_not_found"),
        (404, said("No endpoints found for a/b."), Kind.MODEL_NOT_FOUND, 404, "model_not_found"),
        (404, said("No endpoints found that support tool use."), Kind.REJECTED, 404, "not_found"),
        (404, said("No endpoints found matching your data policy"), Kind.REJECTED, 404,
         "privacy_restricted"),
        (404, b'{"detail": "Not Found"}', Kind.REJECTED, 404, "not_found"),
        (405, b"", Kind.REJECTED, 405, "provider_error"),
        (407, b"", Kind.FORBIDDEN, 403, "forbidden"),
        (408, b"", Kind.PROVIDER_TIMEOUT, 408, "provider_timeout"),
        (413, b"", Kind.REJECTED, 413, "too_large"),
        (422, b"", Kind.REJECTED, 422, "invalid_request"),
        (429, said("slow"), Kind.RATE_LIMITED, 429, "rate_limited"),
        (429, said("slow", code="rate_limit_exceeded"), Kind.RATE_LIMITED, 429,
         "rate_limit_exceeded"),
        (429, said("paid up?", code="insufficient_quota"), Kind.CREDITS_SPENT, 429,
         "insufficient_quota"),
        (429, said("paid up?", type="insufficient_quota"), Kind.CREDITS_SPENT, 429,
         "insufficient_quota"),
        (400, said("Your credit balance is too low to access the Anthropic API."),
         Kind.CREDITS_SPENT, 400, "credits_spent"),
        (400, said("API key not valid. Please pass a valid API key."), Kind.KEY_REFUSED, 400,
         "key_refused"),
        (409, said("busy"), Kind.REJECTED, 409, "provider_error"),
        (500, b"", Kind.SERVER_ERROR, 500, "server_error"),
        (501, b"", Kind.REJECTED, 501, "provider_error"),
        (502, b"<html>", Kind.SERVER_ERROR, 502, "server_error"),
        (503, b"", Kind.SERVER_ERROR, 503, "server_error"),
        (504, b"", Kind.PROVIDER_TIMEOUT, 504, "provider_timeout"),
        (522, b"", Kind.SERVER_ERROR, 522, "server_error"),
        (524, b"", Kind.PROVIDER_TIMEOUT, 524, "provider_timeout"),
        (529, b"", Kind.SERVER_ERROR, 529, "server_error"),
    ],
)  # fmt: skip
def test_a_status_and_a_body_say_what_kind_of_failure_it_is(
    status: int, body: bytes, kind: Kind, answered: int, code: str
) -> None:
    failure = failure_of_status(OPENROUTER, status, (), body)
    assert (failure.kind, failure.status, failure.error.code) == (kind, answered, code)
    assert failure.error.message


@pytest.mark.parametrize("provider", ProviderName)
@pytest.mark.parametrize("status", range(300, 600))
def test_a_providers_401_never_reaches_a_client(provider: ProviderName, status: int) -> None:
    failure = failure_of_status(provider, status, (), b"")
    assert 400 <= failure.status < 600
    assert failure.status not in {401, 407}


@pytest.mark.parametrize("status", [401, 402, 403])
def test_the_operators_account_is_no_business_of_users(status: int) -> None:
    body = said("key sk-operator of org-operator is bad")
    failure = failure_of_status(
        DEFAULT, status, ((b"x-ratelimit-limit", b"1"), (b"x-request-id", b"req_1")), body
    )
    assert (failure.status, failure.error.code) == (502, "provider_misconfigured")
    assert "operator is bad" not in failure.error.message
    assert failure.headers == ((b"x-byoai-provider-request-id", b"req_1"),)


def test_the_operators_rate_limit_does_not_name_the_operator() -> None:
    failure = failure_of_status(DEFAULT, 429, (), said("limit of org-secret reached"))
    assert "org-secret" not in failure.error.message


def test_a_moderated_request_is_the_users_own_business_with_the_default_provider() -> None:
    failure = failure_of_status(DEFAULT, 403, (), said("no", metadata={"reasons": ["violence"]}))
    assert (failure.kind, failure.status) == (Kind.REJECTED, 403)
    assert "violence" in failure.error.message


def test_a_refused_key_is_not_quoted() -> None:
    failure = failure_of_status(OPENROUTER, 401, (), said("Incorrect API key: sk-or-v1-abc"))
    assert "sk-or" not in failure.error.message


def test_privacy_settings_are_linked_to_once() -> None:
    link = "https://openrouter.ai/settings/privacy"
    old = said(f"No endpoints found matching your data policy. Configure: {link}")
    new = said("none", metadata={"error_type": "privacy_restricted"})
    for body in (old, new):
        failure = failure_of_status(OPENROUTER, 404, (), body)
        assert failure.error.message.count(link) == 1
        assert failure.error.code == "privacy_restricted"


def test_a_rate_limit_says_when_to_come_back_and_what_is_left() -> None:
    headers = ((b"retry-after", b"3"), (b"x-ratelimit-remaining", b"0"), (b"set-cookie", b"a"))
    failure = failure_of_status(OPENROUTER, 429, headers, b"")
    assert failure.retry_after_s == 3.0
    assert failure.headers == ((b"x-ratelimit-remaining", b"0"), (b"retry-after", b"3"))


@pytest.mark.parametrize(
    ("error", "kind", "answered", "code"),
    [
        (b'{"code": 502, "message": "down"}', Kind.ERROR_IN_ANSWER, 502, "error_in_answer"),
        (b'{"code": 429, "message": "slow"}', Kind.RATE_LIMITED, 429, "rate_limited"),
        (b'{"code": 401, "message": "no"}', Kind.KEY_REFUSED, 403, "key_refused"),
        (b'{"code": 400, "message": "bad"}', Kind.REJECTED, 400, "invalid_request"),
        (b'{"code": 408, "message": "late"}', Kind.PROVIDER_TIMEOUT, 408, "provider_timeout"),
        (b'{"code": "server_error", "message": "x"}', Kind.ERROR_IN_ANSWER, 502, "server_error"),
        (b'{"type": "overloaded_error", "message": "x"}', Kind.ERROR_IN_ANSWER, 529,
         "error_in_answer"),
        (b'{"type": "rate_limit_error", "message": "x"}', Kind.RATE_LIMITED, 429, "rate_limited"),
        (b'{"code": "context_length_exceeded"}', Kind.REJECTED, 400, "context_length_exceeded"),
        (b'{"type": "not_found_error", "message": "model: x"}', Kind.MODEL_NOT_FOUND, 404,
         "model_not_found"),
        (b'"out of memory"', Kind.ERROR_IN_ANSWER, 502, "error_in_answer"),
        (b"true", Kind.ERROR_IN_ANSWER, 502, "error_in_answer"),
    ],
)  # fmt: skip
def test_an_error_inside_an_answer_is_one_unless_its_code_says_more(
    error: bytes, kind: Kind, answered: int, code: str
) -> None:
    failure = failure_of_error(SELF_HOSTED, msgspec.Raw(error))
    assert (failure.kind, failure.status, failure.error.code) == (kind, answered, code)
    assert failure.error.message


def test_an_error_is_normalised_to_openais_shape() -> None:
    error = failure_of_status(SELF_HOSTED, 400, (), said("bad", code=400, param="n")).error
    assert (error.message, error.type, error.code, error.param) == (
        "bad",
        "invalid_request_error",
        "invalid_request",
        "n",
    )
    silent_one = failure_of_status(SELF_HOSTED, 502, (), b"<html>")
    assert silent_one.error.message == "the provider answered 502 Bad Gateway without saying why"
    assert "599" in failure_of_status(SELF_HOSTED, 599, (), b"").error.message


@pytest.mark.parametrize(
    ("make", "kind", "status", "code"),
    [
        (lambda: timed_out(OPENROUTER, 60), Kind.FIRST_TOKEN_TIMEOUT, 504, None),
        (lambda: out_of_time(OPENROUTER), Kind.DEADLINE, 504, None),
        (lambda: silent(OPENROUTER, 60), Kind.SILENCE, 504, None),
        (lambda: connection_lost(OPENROUTER), Kind.CONNECTION_LOST, 502, None),
        (lambda: unreachable(SELF_HOSTED, "no such name"), Kind.UNREACHABLE, 502, None),
        (lambda: address_refused(SELF_HOSTED, "it is private"), Kind.ADDRESS_REFUSED, 502,
         "address_refused"),
        (lambda: truncated(DEFAULT), Kind.TRUNCATED, 502, None),
        (lambda: malformed(DEFAULT), Kind.MALFORMED, 502, None),
        (lambda: breaker_open(DEFAULT, 12.3), Kind.BREAKER_OPEN, 503, None),
        (lambda: agent_absent(Kind.AGENT_LOCKED, "it is locked", 30.0), Kind.AGENT_LOCKED, 503,
         None),
        (tunnel_busy, Kind.TUNNEL_BUSY, 429, None),
        (tunnel_throttled, Kind.TUNNEL_BUSY, 429, "tunnel_throttled"),
        (lambda: untrusted("not yours"), Kind.AGENT_OFFLINE, 502, "tunnel_untrusted"),
        (lambda: model_not_found(DEFAULT, "gpt"), Kind.MODEL_NOT_FOUND, 404, None),
        (lambda: endpoint_not_found(DEFAULT, "/v1/score"), Kind.REJECTED, 404,
         "endpoint_not_found"),
    ],
)  # fmt: skip
def test_failures_of_our_own_have_a_status_and_the_code_of_their_kind(
    make: Callable[[], Failure], kind: Kind, status: int, code: str | None
) -> None:
    failure = make()
    assert (failure.kind, failure.status) == (kind, status)
    assert failure.error.code == (code or kind.value)
    assert len(failure.error.message) > 5


def test_sentences_name_the_provider_and_the_facts() -> None:
    assert (
        "OpenRouter had not begun to answer after 60 s" in timed_out(OPENROUTER, 60).error.message
    )
    assert "try again in 12 s" in breaker_open(DEFAULT, 12.3).error.message
    assert breaker_open(DEFAULT, 12.3).retry_after_s == 12.3
    assert "no such name" in unreachable(SELF_HOSTED, "no such name").error.message
    assert "'gpt'" in model_not_found(DEFAULT, "gpt").error.message


WORDS = st.sampled_from(
    [
        "error",
        "message",
        "code",
        "type",
        "param",
        "metadata",
        "reasons",
        "raw",
        "detail",
        "loc",
        "msg",
        "status",
        "availability",
        "retry_after",
        "provider_name",
        "error_type",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=20,
)


@given(
    st.sampled_from(ProviderName),
    st.integers(300, 599),
    st.binary() | JSON.map(msgspec.json.encode),
)
def test_no_answer_of_a_provider_is_too_strange(
    provider: ProviderName, status: int, body: bytes
) -> None:
    failure = failure_of_status(provider, status, (), body)
    assert 400 <= failure.status < 600
    assert failure.status != 401
    assert failure.error.message.isprintable()
    assert failure.error.code


@given(st.sampled_from(ProviderName), JSON)
def test_no_error_in_an_answer_is_too_strange(provider: ProviderName, error: object) -> None:
    failure = failure_of_error(provider, msgspec.Raw(msgspec.json.encode(error)))
    assert 400 <= failure.status < 600
    assert failure.status != 401
    assert failure.error.message.isprintable()
    assert len(failure.error.message) < 2200
