from dataclasses import replace

import pytest

from byoai_gateway.router.classify import (
    address_refused,
    agent_absent,
    breaker_open,
    connection_lost,
    failure_of_status,
    malformed,
    malformed_http,
    out_of_time,
    timed_out,
    truncated,
    tunnel_busy,
    unreachable,
    untrusted,
)
from byoai_gateway.router.decision import (
    LOADING_PAUSE_S,
    MOST_PATIENCE_S,
    PAUSE_S,
    FallBack,
    GiveUp,
    Next,
    Progress,
    Retry,
    attention_for,
    counts_as_attempt,
    counts_for_breaker,
    decide,
    repeat_is_useless,
)
from byoai_gateway.router.failures import ABSENCES, Failure
from byoai_gateway.router.failures import FailureKind as Kind
from byoai_gateway.router.upstream import ProviderName
from byoai_shared.api_errors import api_error

FRESH = Progress(retries_left=1, may_fall_back=True, committed=False)
RETRIED = replace(FRESH, retries_left=0)
ALONE = replace(FRESH, may_fall_back=False)
SPENT = Progress(retries_left=0, may_fall_back=False, committed=False)

RETRY, FALL_BACK, GIVE_UP = Retry(PAUSE_S), FallBack(), GiveUp()


def a_failure(kind: Kind, wait_s: float | None = None, code: str | None = None) -> Failure:
    return Failure(kind, 502, api_error(502, code or kind.value, "it failed"), wait_s)


# What is done with a retry and a fallback at hand; with a fallback only; with a retry only.
RULES: list[tuple[Kind, Next, Next, Next]] = [
    (Kind.UNREACHABLE, RETRY, FALL_BACK, RETRY),
    (Kind.ADDRESS_REFUSED, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.AGENT_OFFLINE, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.NO_RELAY_CONNECTED, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.AGENT_UNREACHABLE, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.AGENT_NEVER_JOINED, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.AGENT_LOCKED, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.TUNNEL_BUSY, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.BREAKER_OPEN, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.NOT_READY, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.OVERLOADED, GIVE_UP, GIVE_UP, GIVE_UP),
    (Kind.CONNECTION_LOST, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.FIRST_TOKEN_TIMEOUT, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.SILENCE, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.SERVER_ERROR, RETRY, FALL_BACK, RETRY),
    (Kind.PROVIDER_TIMEOUT, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.RATE_LIMITED, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.REJECTED, GIVE_UP, GIVE_UP, GIVE_UP),
    (Kind.KEY_REFUSED, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.CREDITS_SPENT, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.FORBIDDEN, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.MODEL_NOT_FOUND, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.ERROR_IN_ANSWER, RETRY, FALL_BACK, RETRY),
    (Kind.MALFORMED, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.TRUNCATED, FALL_BACK, FALL_BACK, GIVE_UP),
    (Kind.DEADLINE, GIVE_UP, GIVE_UP, GIVE_UP),
]


def test_the_table_has_every_kind() -> None:
    assert [kind for kind, *_ in RULES] == list(Kind)


@pytest.mark.parametrize(("kind", "fresh", "retried", "alone"), RULES)
def test_a_retry_where_it_may_help_then_the_fallback_then_the_truth(
    kind: Kind, fresh: Next, retried: Next, alone: Next
) -> None:
    failure = a_failure(kind)
    assert decide(failure, FRESH) == fresh
    assert decide(failure, RETRIED) == retried
    assert decide(failure, ALONE) == alone
    assert decide(failure, SPENT) == GIVE_UP


@pytest.mark.parametrize("kind", Kind)
def test_an_answer_that_has_begun_is_never_begun_again(kind: Kind) -> None:
    assert decide(a_failure(kind, 0.0), replace(FRESH, committed=True)) == GIVE_UP


@pytest.mark.parametrize(
    ("kind", "wait_s", "expected"),
    [
        (Kind.RATE_LIMITED, 0.0, Retry(0.0)),
        (Kind.RATE_LIMITED, MOST_PATIENCE_S, Retry(MOST_PATIENCE_S)),
        (Kind.RATE_LIMITED, MOST_PATIENCE_S + 0.01, FALL_BACK),
        (Kind.SERVER_ERROR, 2.0, Retry(2.0)),
        (Kind.SERVER_ERROR, 60.0, FALL_BACK),
        (Kind.TUNNEL_BUSY, 1.0, Retry(1.0)),
        (Kind.AGENT_OFFLINE, 1.0, FALL_BACK),
        (Kind.REJECTED, 1.0, GIVE_UP),
    ],
)
def test_a_provider_is_waited_for_as_long_as_it_asks_but_not_longer_than_a_few_seconds(
    kind: Kind, wait_s: float, expected: Next
) -> None:
    assert decide(a_failure(kind, wait_s), FRESH) == expected


@pytest.mark.parametrize(
    ("wait_s", "left_s", "expected"),
    [
        (0.0, 61.0, Retry(PAUSE_S, is_counted=False)),
        (None, LOADING_PAUSE_S + 0.1, Retry(LOADING_PAUSE_S, is_counted=False)),
        (None, LOADING_PAUSE_S, FALL_BACK),
        (60.0, 61.0, Retry(60.0, is_counted=False)),
        (60.0, 59.0, FALL_BACK),
    ],
)
def test_a_model_that_loads_is_waited_for_while_there_is_time(
    wait_s: float | None, left_s: float, expected: Next
) -> None:
    failure = a_failure(Kind.NOT_READY, wait_s)
    assert decide(failure, replace(RETRIED, loading_left_s=left_s)) == expected


@pytest.mark.parametrize(
    ("times", "wait_s", "expected_s"),
    [(0, 0.0, 0.25), (3, 0.0, 2.0), (9, 0.1, 8.0), (9, 20.0, 20.0)],
)
def test_a_provider_that_is_never_ready_is_asked_ever_less_often(
    times: int, wait_s: float, expected_s: float
) -> None:
    progress = replace(RETRIED, loading_left_s=1000.0, times_not_ready=times)
    assert decide(a_failure(Kind.NOT_READY, wait_s), progress) == Retry(
        expected_s, is_counted=False
    )


def test_a_model_that_does_not_say_when_is_left_for_the_fallback_after_a_few_seconds() -> None:
    failure = a_failure(Kind.NOT_READY)
    waiting = replace(RETRIED, loading_left_s=1000.0)
    assert isinstance(decide(failure, replace(waiting, times_not_ready=1)), Retry)
    assert decide(failure, replace(waiting, times_not_ready=2)) == FALL_BACK
    alone = replace(waiting, times_not_ready=2, may_fall_back=False)
    assert isinstance(decide(failure, alone), Retry)


@pytest.mark.parametrize("kind", Kind)
def test_what_changes_state_is_repeated_only_where_nothing_was_processed(kind: Kind) -> None:
    step = decide(a_failure(kind, 0.0), replace(FRESH, may_repeat_processed=False))
    unprocessed = {Kind.UNREACHABLE, Kind.RATE_LIMITED, Kind.TUNNEL_BUSY}
    assert isinstance(step, Retry) == (kind in unprocessed)


@pytest.mark.parametrize(
    ("message", "param", "asks_again"),
    [
        ("stream_options: Extra inputs are not permitted", None, True),
        ("Unrecognized request argument supplied: stream_options", None, True),
        ("unknown field", "stream_options.include_usage", True),
        ("Unknown parameter: 'stream_options'.", None, True),
        ("body.stream_options.include_usage is not supported", None, False),
        ("too long", "messages", False),
        ("tool 7 quotes stream_options of yours", "tools[7].type", False),
        ("your prompt says: please drop, if you can, stream_options", None, False),
    ],
)
def test_usage_that_we_asked_for_and_the_provider_refuses_is_given_up(
    message: str, param: str | None, *, asks_again: bool
) -> None:
    failure = Failure(Kind.REJECTED, 422, api_error(422, "invalid_request", message, param=param))
    expected = Retry(0.0, is_counted=False) if asks_again else GIVE_UP
    assert decide(failure, replace(SPENT, added_usage=True)) == expected
    assert decide(failure, SPENT) == GIVE_UP


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (unreachable(ProviderName.DEFAULT), False),
        (connection_lost(ProviderName.DEFAULT), False),
        (truncated(ProviderName.DEFAULT), False),
        (timed_out(ProviderName.DEFAULT, 1), False),
        (out_of_time(ProviderName.DEFAULT), False),
        (agent_absent(Kind.AGENT_OFFLINE, "it left", 5.0), False),
        (tunnel_busy(), False),
        (breaker_open(ProviderName.DEFAULT, 1), False),
        (malformed_http(ProviderName.DEFAULT), False),
        (malformed(ProviderName.DEFAULT), True),
        (untrusted("another certificate"), True),
        (address_refused(ProviderName.SELF_HOSTED, "private"), True),
        (failure_of_status(ProviderName.DEFAULT, 401, (), b""), True),
        (failure_of_status(ProviderName.OPENROUTER, 402, (), b""), True),
        *[(failure_of_status(ProviderName.OPENROUTER, it, (), b""), False)
          for it in (408, 409, 429, 500, 502, 503, 504, 529)],
        (failure_of_status(ProviderName.OPENROUTER, 501, (), b""), True),
        (failure_of_status(ProviderName.SELF_HOSTED, 508, (), b""), True),
    ],
)  # fmt: skip
def test_clients_are_forbidden_only_what_is_known_to_be_useless(
    failure: Failure, *, expected: bool
) -> None:
    assert repeat_is_useless(failure) is expected


DEFAULT, OPENROUTER, SELF_HOSTED = ProviderName


@pytest.mark.parametrize(
    ("provider", "kind", "expected"),
    [
        (OPENROUTER, Kind.KEY_REFUSED, ("openRouterApiKey", "key_refused")),
        (OPENROUTER, Kind.CREDITS_SPENT, ("openRouterApiKey", "credits_spent")),
        (OPENROUTER, Kind.FORBIDDEN, ("openRouterApiKey", "forbidden")),
        (OPENROUTER, Kind.MODEL_NOT_FOUND, ("openRouterModelPreference", "model_not_found")),
        (SELF_HOSTED, Kind.KEY_REFUSED, ("selfHostedAuthKey", "key_refused")),
        (SELF_HOSTED, Kind.FORBIDDEN, ("selfHostedAuthKey", "forbidden")),
        (SELF_HOSTED, Kind.MODEL_NOT_FOUND, ("selfHostedModelPreference", "model_not_found")),
        (SELF_HOSTED, Kind.UNREACHABLE, None),
        (SELF_HOSTED, Kind.AGENT_OFFLINE, None),
        (OPENROUTER, Kind.RATE_LIMITED, None),
        (OPENROUTER, Kind.REJECTED, None),
    ],
)
def test_the_setting_to_blame_is_named(
    provider: ProviderName, kind: Kind, expected: tuple[str, str] | None
) -> None:
    assert attention_for(provider, a_failure(kind)) == expected


@pytest.mark.parametrize("kind", Kind)
def test_no_setting_of_a_user_is_to_blame_for_the_default_provider(kind: Kind) -> None:
    assert attention_for(DEFAULT, a_failure(kind)) is None


def test_an_address_that_leads_where_we_do_not_go_is_named() -> None:
    failure = a_failure(Kind.ADDRESS_REFUSED)
    assert attention_for(SELF_HOSTED, failure) == ("selfHostedUrl", "address_refused")


def test_an_address_that_leads_back_to_us_is_named() -> None:
    failure = replace(a_failure(Kind.REJECTED, code="loop_detected"), status=508)
    assert attention_for(SELF_HOSTED, failure) == ("selfHostedUrl", "loop_detected")
    assert attention_for(OPENROUTER, failure) is None


def test_only_a_providers_own_faults_count() -> None:
    assert {kind for kind in Kind if not counts_for_breaker(a_failure(kind))} == {
        Kind.ADDRESS_REFUSED,
        *ABSENCES,
        Kind.TUNNEL_BUSY,
        Kind.BREAKER_OPEN,
        Kind.NOT_READY,
        Kind.OVERLOADED,
        Kind.RATE_LIMITED,
        Kind.REJECTED,
        Kind.KEY_REFUSED,
        Kind.CREDITS_SPENT,
        Kind.FORBIDDEN,
        Kind.MODEL_NOT_FOUND,
        Kind.DEADLINE,
    }


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.UNREACHABLE, True),
        (Kind.DEADLINE, True),
        (Kind.ADDRESS_REFUSED, False),
        *((kind, False) for kind in sorted(ABSENCES)),
        (Kind.TUNNEL_BUSY, False),
    ],
)
def test_a_dial_that_was_refused_is_an_attempt_and_one_that_was_not_made_is_none(
    kind: Kind, *, expected: bool
) -> None:
    assert counts_as_attempt(a_failure(kind)) is expected


def test_a_provider_cannot_say_in_our_words_that_an_address_is_to_blame() -> None:
    failure = a_failure(Kind.REJECTED, code="address_refused")
    assert attention_for(SELF_HOSTED, failure) is None


@pytest.mark.parametrize("kind", [*Kind])
def test_what_an_agent_surely_did_not_process_goes_to_another_at_once(kind: Kind) -> None:
    not_processed = ABSENCES | {
        Kind.UNREACHABLE,
        Kind.RATE_LIMITED,
        Kind.TUNNEL_BUSY,
        Kind.NOT_READY,
    }
    for progress in (FRESH, RETRIED, ALONE, SPENT):
        decided = decide(a_failure(kind), replace(progress, has_other_agent=True))
        elsewhere = Retry(0.0, is_counted=False)
        expected = elsewhere if kind in not_processed else decide(a_failure(kind), progress)
        assert decided == expected
    committed = replace(FRESH, has_other_agent=True, committed=True)
    assert decide(a_failure(kind), committed) == GIVE_UP
