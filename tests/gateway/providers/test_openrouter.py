"""OpenRouter's requests are made as it wants them, and its faults mean what it documents."""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from byoai_gateway.model_choice import ModelPreference
from byoai_gateway.provider_config import OpenRouterSection, RouterSection
from byoai_gateway.providers.openrouter import OpenRouter
from byoai_gateway.providers.outbound import Outbound
from byoai_gateway.router.endpoints import find
from byoai_gateway.router.failures import AttemptFailed, Failure, FailureKind
from byoai_gateway.router.upstream import Call, Prepared, ProviderName
from byoai_shared.errors import ConfigError
from byoai_shared.http1.head import Headers, RequestHead, header
from byoai_shared.secret import Secret
from support.openrouter import ANSWER, FAULTS, KEY, USAGE, FakeOpenRouter, serving_openrouter

PUBLIC_URL = "https://app.example.com"
UNANSWERED = Outbound(0.5)


@pytest.fixture
async def service() -> AsyncGenerator[FakeOpenRouter]:
    async with serving_openrouter() as running:
        yield running


def openrouter(url: str = "https://openrouter.ai/api/v1", **settings: Any) -> OpenRouter:
    section = OpenRouterSection(base_url=url, **settings)
    return OpenRouter(section, RouterSection(), PUBLIC_URL, UNANSWERED)


def call(
    path: str = "/v1/chat/completions",
    *,
    headers: Headers = (),
    method: str = "POST",
    **fields: object,
) -> Call:
    endpoint = find(method, path)
    assert endpoint is not None
    body = msgspec.json.encode(fields) if method == "POST" else b""
    model = fields.get("model")
    return Call(
        endpoint,
        RequestHead(method, path, headers),
        body,
        msgspec.json.decode(body, type=dict[str, msgspec.Raw]) if body else None,
        str(model) if model is not None else None,
        fields.get("stream") is True,
        wants_usage=False,
        request_id="req-1",
    )


def prepare(made: Call, preferred: str | None = None, **settings: Any) -> Prepared:
    return openrouter(**settings).upstream(Secret(KEY), ModelPreference(preferred)).prepare(made)


def sent(prepared: Prepared) -> dict[str, Any]:
    assert isinstance(prepared.body, bytes)
    return msgspec.json.decode(prepared.body, type=dict[str, Any])


async def exchange(
    service: FakeOpenRouter, made: Call, key: str = KEY
) -> tuple[int, bytes, Failure | None]:
    """Send a request as the router does; answers status, body, and what that means."""
    outbound = Outbound(5)
    section = OpenRouterSection(base_url=service.url)
    upstream = OpenRouter(section, RouterSection(), PUBLIC_URL, outbound).upstream(
        Secret(key), None
    )
    connection = await upstream.acquire()
    try:
        ready = upstream.prepare(made)
        response = await connection.request(ready.head, ready.body, head_timeout_s=5)
        body = await response.read(1_000_000)
    finally:
        upstream.release(connection)
        outbound.close()
    head = response.head
    failure = upstream.explain(head.status, head.headers, body) if head.status >= 400 else None
    return head.status, body, failure


class TestRequests:
    def test_they_carry_the_users_key_and_the_applications_name(self) -> None:
        clients: Headers = (
            (b"authorization", b"Bearer the-session"),
            (b"cookie", b"session=1"),
            (b"http-referer", b"https://elsewhere.example"),
            (b"x-title", b"Elsewhere"),
            (b"accept", b"text/event-stream"),
        )
        head = prepare(call(model="acme/small", headers=clients), title="Our app").head
        names = [name for name, _ in head.headers]
        assert head.target == "/api/v1/chat/completions"
        assert header(head.headers, b"host") == b"openrouter.ai"
        assert header(head.headers, b"authorization") == f"Bearer {KEY}".encode()
        assert header(head.headers, b"http-referer") == PUBLIC_URL.encode()
        assert header(head.headers, b"x-title") == b"Our app"
        assert header(head.headers, b"x-openrouter-title") == b"Our app"
        assert header(head.headers, b"x-request-id") == b"req-1"
        assert header(head.headers, b"accept") == b"text/event-stream"
        assert len(names) == len(set(names))
        assert b"cookie" not in names

    def test_the_settings_may_name_another_address_of_the_application(self) -> None:
        head = prepare(call(model="m"), referer="https://www.example.com").head
        assert header(head.headers, b"http-referer") == b"https://www.example.com"

    @pytest.mark.parametrize(
        ("path", "asked", "preferred", "expected"),
        [
            ("/v1/chat/completions", "acme/small", None, "acme/small"),
            ("/v1/chat/completions", "acme/small", "acme/large", "acme/small"),
            ("/v1/chat/completions", "acme/small:nitro", "acme/large", "acme/small:nitro"),
            ("/v1/chat/completions", "@preset/mine", "acme/large", "@preset/mine"),
            ("/v1/chat/completions", "~acme/latest", "acme/large", "~acme/latest"),
            ("/v1/chat/completions", "small", "acme/large", "acme/large"),
            ("/v1/chat/completions", "small", None, None),
            ("/v1/chat/completions", None, "acme/large", "acme/large"),
            ("/v1/chat/completions", "default", "acme/large", "acme/large"),
            ("/v1/chat/completions", "default", None, None),
            ("/v1/chat/completions", None, None, None),
            ("/v1/messages", "acme/small", "acme/large", "acme/small"),
            ("/v1/responses", "acme/small", "acme/large", "acme/small"),
            ("/v1/embeddings", "text-embedding-3-small", "acme/large", "text-embedding-3-small"),
            ("/v1/embeddings", None, "acme/large", None),
            ("/v1/embeddings", None, "acme/embed", "acme/embed"),
            ("/v1/embeddings", "acme/embed", "acme/large", "acme/embed"),
            ("/v1/rerank", "acme/rerank", "acme/large", "acme/rerank"),
        ],
    )
    def test_the_model_asked_for(
        self, path: str, asked: str | None, preferred: str | None, expected: str | None
    ) -> None:
        made = call(path) if asked is None else call(path, model=asked)
        prepared = prepare(made, preferred)
        assert sent(prepared).get("model") == expected
        assert prepared.model == expected

    def test_a_stream_is_asked_for_its_usage_and_keeps_its_other_fields(self) -> None:
        body = sent(prepare(call(model="m", stream=True, provider={"sort": "price"})))
        assert body["stream_options"] == {"include_usage": True}
        assert body["provider"] == {"sort": "price"}

    def test_models_are_those_of_the_user(self) -> None:
        assert prepare(call("/v1/models", method="GET")).head.target == "/api/v1/models/user"

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/models/acme/small"),
            ("POST", "/v1/score"),
            ("POST", "/v1/images/generations"),
        ],
    )
    def test_what_openrouter_lacks_is_refused_before_a_byte_is_sent(
        self, method: str, path: str
    ) -> None:
        with pytest.raises(AttemptFailed) as caught:
            prepare(call(path, method=method))
        assert caught.value.failure.kind is FailureKind.REJECTED
        assert caught.value.failure.status == 404

    def test_settings_without_an_address_are_refused(self) -> None:
        with pytest.raises(ConfigError):
            openrouter("openrouter.ai/api/v1")

    def test_neither_service_nor_provider_shows_the_key(self) -> None:
        assert KEY not in repr(openrouter().upstream(Secret(KEY), None))

    def test_timers_are_those_of_openrouter(self) -> None:
        upstream = openrouter(first_token_s=42).upstream(Secret(KEY), None)
        assert upstream.provider is ProviderName.OPENROUTER
        assert upstream.timers.first_token_s == 42


class TestLinksToPages:
    @pytest.mark.parametrize(
        ("link", "expected"),
        [
            (None, None),
            ("https://openrouter.ai/api/v1/models/user?page=2", "/models/user?page=2"),
            ("/api/v1/models/user?page=2", "/models/user?page=2"),
            ("?page=2", "/models/user?page=2"),
            ("https://elsewhere.example/api/v1/models/user?page=2", None),
            ("http://openrouter.ai/api/v1/models/user?page=2", None),
            ("//elsewhere.example/api/v1/models/user", None),
            ("https://openrouter.ai@elsewhere.example/api/v1/models", None),
            ("/api/v1/keys", None),
            ("/api/v1/models/../keys", None),
            ("https://[broken/api/v1/models", None),
            ("?page=zwölf", None),
        ],
    )
    def test_only_lists_of_the_same_service_are_followed(
        self, link: str | None, expected: str | None
    ) -> None:
        assert openrouter().next_page("/models/user", link) == expected


class TestFaults:
    @pytest.mark.parametrize(
        ("fault", "kind", "status"),
        [
            ("bad_request", FailureKind.REJECTED, 400),
            ("no_such_model", FailureKind.MODEL_NOT_FOUND, 400),
            ("key", FailureKind.KEY_REFUSED, 403),
            ("credits", FailureKind.CREDITS_SPENT, 402),
            ("in_flight_budget", FailureKind.RATE_LIMITED, 402),
            ("moderation", FailureKind.REJECTED, 403),
            ("forbidden", FailureKind.FORBIDDEN, 403),
            ("no_endpoints", FailureKind.MODEL_NOT_FOUND, 404),
            ("privacy", FailureKind.REJECTED, 404),
            ("privacy_older", FailureKind.REJECTED, 404),
            ("timeout", FailureKind.PROVIDER_TIMEOUT, 408),
            ("too_large", FailureKind.REJECTED, 413),
            ("rate_limit", FailureKind.RATE_LIMITED, 429),
            ("internal", FailureKind.SERVER_ERROR, 500),
            ("provider_down", FailureKind.SERVER_ERROR, 502),
            ("no_provider", FailureKind.SERVER_ERROR, 503),
            ("edge_timeout", FailureKind.PROVIDER_TIMEOUT, 524),
            ("overloaded", FailureKind.SERVER_ERROR, 529),
        ],
    )
    async def test_each_means_what_is_documented(
        self, service: FakeOpenRouter, fault: str, kind: FailureKind, status: int
    ) -> None:
        got, _, failure = await exchange(service, call(model=f"fault/{fault}"))
        assert got == FAULTS[fault].status
        assert failure is not None
        assert failure.kind is kind
        assert failure.status == status
        assert KEY not in failure.error.message

    async def test_privacy_settings_are_linked_to(self, service: FakeOpenRouter) -> None:
        _, _, failure = await exchange(service, call(model="fault/privacy_older"))
        assert failure is not None
        assert "https://openrouter.ai/settings/privacy" in failure.error.message

    async def test_a_limit_of_rate_says_when_to_come_back(self, service: FakeOpenRouter) -> None:
        _, _, failure = await exchange(service, call(model="fault/rate_limit"))
        assert failure is not None
        assert failure.retry_after_s == 30
        assert (b"x-ratelimit-limit", b"20") in failure.headers

    async def test_credit_that_is_only_in_use_comes_back(self, service: FakeOpenRouter) -> None:
        _, _, failure = await exchange(service, call(model="fault/in_flight_budget"))
        assert failure is not None
        assert failure.retry_after_s == 2
        assert failure.error.type == "rate_limit_error"

    async def test_an_unknown_key_is_refused(self, service: FakeOpenRouter) -> None:
        _, _, failure = await exchange(service, call(model="m"), key="sk-or-v1-of-nobody")
        assert failure is not None
        assert failure.kind is FailureKind.KEY_REFUSED

    async def test_an_error_inside_an_answer_is_explained(self) -> None:
        upstream = openrouter().upstream(Secret(KEY), None)
        failure = upstream.explain_error(msgspec.Raw(b'{"code":502,"message":"it broke"}'))
        assert failure.kind is FailureKind.ERROR_IN_ANSWER

    async def test_no_way_to_it_is_a_failure_before_anything_is_sent(
        self, service: FakeOpenRouter
    ) -> None:
        upstream = openrouter("http://127.0.0.1:1/api/v1").upstream(Secret(KEY), None)
        with pytest.raises(AttemptFailed) as caught:
            await upstream.acquire()
        assert caught.value.failure.kind is FailureKind.UNREACHABLE


class TestAnswers:
    async def test_a_stream_comes_with_its_comments_and_cost(self, service: FakeOpenRouter) -> None:
        status, body, _ = await exchange(service, call(model="acme/small", stream=True))
        assert status == 200
        assert body.startswith(b"".join(ANSWER))
        assert b'"cost": 9.3e-05' in body
        assert body.endswith(b"data: [DONE]\n\n")

    async def test_a_whole_answer_keeps_its_cost(self, service: FakeOpenRouter) -> None:
        _, body, _ = await exchange(service, call(model="acme/small"))
        assert msgspec.json.decode(body)["usage"] == USAGE
