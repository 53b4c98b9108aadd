import pytest

from byoai_gateway.router.error_headers import rate_limits, retry_after_s

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


def test_only_rate_limits_pass() -> None:
    passing = (
        (b"x-ratelimit-limit", b"20"),
        (b"x-ratelimit-remaining-requests", b"19"),
        (b"x-ratelimit-reset-project-tokens", b"6m0s"),
    )
    others = (
        (b"x-ratelimit-secret", b"1"),
        (b"x-ratelimit-limit-requests", b"x" * 100),
        (b"x-ratelimit-limit", b"1\r\nset-cookie: a"),
        (b"set-cookie", b"a=b"),
        (b"openai-organization", b"org"),
    )
    assert rate_limits(passing + others) == passing


def test_not_more_than_a_few_pass() -> None:
    many = tuple((b"x-ratelimit-limit", b"%d" % n) for n in range(100))
    assert len(rate_limits(many)) == 16
