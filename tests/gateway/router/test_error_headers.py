import pytest

from byoai_gateway.router.error_headers import (
    headers_for_client,
    provider_request_id,
    retry_after_s,
)

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        (b"retry-after", b"7", 7.0),
        (b"retry-after", b" 1.5 ", 1.5),
        (b"retry-after", b"-3", 0.0),
        (b"retry-after", b"99999999", 86_400.0),
        (b"retry-after-ms", b"1500", 1.5),
        (b"retry-after", b"Tue, 14 Nov 2023 22:13:30 GMT", 10.0),
        (b"retry-after", b"Tue, 14 Nov 2023 22:13:10 GMT", 0.0),
        (b"retry-after", b"soon", None),
        (b"retry-after", b"nan", None),
        (b"retry-after", b"inf", None),
        (b"retry-after", b"\xff", None),
        (b"retry-after", b"", None),
        (b"retry-later", b"7", None),
    ],
)
def test_the_wait_is_read_and_bounded(name: bytes, value: bytes, seconds: float | None) -> None:
    assert retry_after_s(((name, value),), NOW) == seconds


def test_milliseconds_are_preferred() -> None:
    headers = ((b"retry-after", b"2"), (b"retry-after-ms", b"1200"))
    assert retry_after_s(headers) == 1.2


PASSING = (
    (b"x-ratelimit-limit", b"20"),
    (b"x-ratelimit-remaining-requests", b"19"),
    (b"x-ratelimit-reset-project-tokens", b"6m0s"),
    (b"anthropic-ratelimit-requests-remaining", b"0"),
    (b"anthropic-ratelimit-input-tokens-reset", b"2026-01-01T00:00:00Z"),
    (b"anthropic-ratelimit-unified-5h-status", b"allowed"),
    (b"openai-processing-ms", b"17"),
)


def test_only_what_tells_a_client_of_its_limits_passes() -> None:
    others = (
        (b"x-ratelimit-secret", b"1"),
        (b"anthropic-ratelimit-limit", b"1"),
        (b"anthropic-organization-id", b"org"),
        (b"x-ratelimit-limit-requests", b"x" * 100),
        (b"x-ratelimit-limit", b"1\r\nset-cookie: a"),
        (b"set-cookie", b"a=b"),
        (b"openai-organization", b"org"),
    )
    assert headers_for_client(PASSING + others) == PASSING


def test_not_more_than_a_few_pass() -> None:
    many = tuple((b"x-ratelimit-limit", b"%d" % n) for n in range(100))
    assert len(headers_for_client(many)) == 24


@pytest.mark.parametrize(
    ("name", "value", "passes"),
    [
        (b"retry-after", b"7", True),
        (b"retry-after", b"1.5", True),
        (b"retry-after", b"0", True),
        (b"retry-after", b"Tue, 14 Nov 2023 22:13:30 GMT", True),
        (b"retry-after", b"-3", False),
        (b"retry-after", b"soon", False),
        (b"retry-after", b"nan", False),
        (b"retry-after", b"", False),
        (b"retry-after-ms", b"1200", True),
        (b"retry-after-ms", b"-1", False),
        (b"retry-after-ms", b"Tue, 14 Nov 2023 22:13:30 GMT", False),
    ],
)
def test_a_wait_passes_as_it_came_if_it_can_be_read(
    name: bytes, value: bytes, *, passes: bool
) -> None:
    assert headers_for_client(((name, value),)) == (((name, value),) if passes else ())


@pytest.mark.parametrize(
    ("headers", "request_id"),
    [
        (((b"x-request-id", b"req_1"),), b"req_1"),
        (((b"request-id", b"req_2"),), b"req_2"),
        (((b"x-request-id", b"of-a-proxy"), (b"request-id", b"req_3")), b"req_3"),
        (((b"request-id", b"two words"), (b"x-request-id", b"req_4")), b"req_4"),
        (((b"x-request-id", b"x" * 129),), None),
        (((b"x-request-id", b""),), None),
        (((b"x-request-id", b"\xc3\xa9"),), None),
        (((b"x-byoai-provider-request-id", b"forged"),), None),
        ((), None),
    ],
)
def test_a_providers_id_of_the_request_has_a_name_of_its_own(
    headers: tuple[tuple[bytes, bytes], ...], request_id: bytes | None
) -> None:
    expected = () if request_id is None else ((b"x-byoai-provider-request-id", request_id),)
    assert provider_request_id(headers) == headers_for_client(headers) == expected
