"""The operator's provider, and users' servers at an address."""

import json
from collections.abc import AsyncGenerator

import msgspec
import pytest

from byoai_gateway.provider_config import DefaultProviderSection, RouterSection
from byoai_gateway.providers.address_guard import AddressGuard
from byoai_gateway.providers.compatible import (
    CompatibleUpstream,
    DefaultProvider,
    self_hosted_by_url,
)
from byoai_gateway.providers.outbound import Outbound
from byoai_gateway.refusals import Refusal
from byoai_gateway.router.endpoints import find
from byoai_gateway.router.failures import AttemptFailed, FailureKind
from byoai_gateway.router.payload import REPLAYABLE_UPLOAD_BYTES
from byoai_gateway.router.upstream import Call, ProviderName, Timers
from byoai_shared.errors import ConfigError
from byoai_shared.http1.framing import Framing, Open
from byoai_shared.http1.head import RequestHead
from byoai_shared.http1.incoming import IncomingBody
from byoai_shared.secret import Secret

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
BASE = "https://ai.example.com/api/v1"
SOME_MODELS = {"small": "org/small-1", "same": "same"}


@pytest.fixture
async def outbound() -> AsyncGenerator[Outbound]:
    made = Outbound(1.0)
    yield made
    made.close()


def call_of(path: str, body: bytes | None = None, model: str | None = None) -> Call:
    method = "GET" if path.startswith("/v1/models") else "POST"
    endpoint = find(method, path)
    assert endpoint is not None
    return Call(
        endpoint=endpoint,
        head=RequestHead(method, path, ((b"authorization", b"Bearer session"),)),
        body=body or b"",
        fields=None if body is None else _fields.decode(body),
        model=model,
        is_stream=False,
        wants_usage=False,
        request_id="id-1",
    )


def chat(model: str | None = None, **fields: object) -> Call:
    named = {} if model is None else {"model": model}
    return call_of("/v1/chat/completions", json.dumps(named | fields).encode(), model)


def default_upstream(
    outbound: Outbound, *, is_fallback: bool = False, **settings: object
) -> CompatibleUpstream:
    section = msgspec.convert({"base_url": BASE, **settings}, DefaultProviderSection)
    section = msgspec.structs.replace(section, key=Secret("operators-key"))
    return DefaultProvider(section, RouterSection(), outbound).upstream(is_fallback=is_fallback)


def by_url(
    outbound: Outbound, url: str = "https://llm.example.com", key: str | None = None
) -> CompatibleUpstream:
    secret = None if key is None else Secret(key)
    return self_hosted_by_url(url, secret, AddressGuard(), outbound, Timers(1, 2, 3))


def asked_model(upstream: CompatibleUpstream, call: Call) -> str | None:
    prepared = upstream.prepare(call)
    assert isinstance(prepared.body, bytes)
    found: str | None = json.loads(prepared.body).get("model")
    assert found == prepared.model
    return found


def refusal(upstream: CompatibleUpstream, call: Call) -> FailureKind:
    with pytest.raises(AttemptFailed) as caught:
        upstream.prepare(call)
    return caught.value.failure.kind


def test_the_default_provider_gets_the_operators_key_and_address(outbound: Outbound) -> None:
    head = default_upstream(outbound).prepare(chat("m")).head
    assert head.target == "/api/v1/chat/completions"
    assert head.header(b"host") == b"ai.example.com"
    assert head.header(b"authorization") == b"Bearer operators-key"
    assert head.header(b"x-request-id") == b"id-1"
    assert [value for name, value in head.headers if name == b"authorization"] == [
        b"Bearer operators-key"
    ]


@pytest.mark.parametrize(
    ("models", "model", "asked", "expected"),
    [
        ({}, None, "anything", "anything"),
        ({}, "main", "anything", "anything"),
        ({}, "main", None, "main"),
        ({}, "main", "default", "main"),
        ({}, None, None, None),
        (SOME_MODELS, None, "small", "org/small-1"),
        (SOME_MODELS, None, "same", "same"),
        (SOME_MODELS, "small", None, "org/small-1"),
        (SOME_MODELS, "main", "default", "main"),
    ],
)
def test_the_default_provider_is_asked_for_its_own_names(
    outbound: Outbound,
    models: dict[str, str],
    model: str | None,
    asked: str | None,
    expected: str | None,
) -> None:
    upstream = default_upstream(outbound, models=models, model=model)
    assert asked_model(upstream, chat(asked)) == expected


@pytest.mark.parametrize("asked", ["org/small-1", "main", "else", "", None, "default"])
def test_other_models_than_the_listed_are_not_found(outbound: Outbound, asked: str | None) -> None:
    upstream = default_upstream(outbound, models=SOME_MODELS)
    assert refusal(upstream, chat(asked)) is FailureKind.MODEL_NOT_FOUND


def test_the_model_that_stands_in_for_no_name_cannot_be_named(outbound: Outbound) -> None:
    upstream = default_upstream(outbound, models=SOME_MODELS, model="main")
    assert refusal(upstream, chat("main")) is FailureKind.MODEL_NOT_FOUND


def test_a_second_model_in_a_body_does_not_pass_a_list(outbound: Outbound) -> None:
    body = b'{"model":"dear","model":"same"}'
    call = call_of("/v1/chat/completions", body, "same")
    made = default_upstream(outbound, models=SOME_MODELS).prepare(call)
    assert made.body == b'{"model":"same"}'


@pytest.mark.parametrize(
    ("models", "model", "asked", "expected"),
    [
        (SOME_MODELS, "main", "anthropic/claude", "main"),
        (SOME_MODELS, "main", "small", "org/small-1"),
        ({}, "main", "anthropic/claude", "main"),
        ({}, None, "anthropic/claude", "anthropic/claude"),
    ],
)
def test_a_fallback_takes_an_unknown_model_as_a_wish(
    outbound: Outbound, models: dict[str, str], model: str | None, asked: str, expected: str
) -> None:
    upstream = default_upstream(outbound, is_fallback=True, models=models, model=model)
    assert asked_model(upstream, chat(asked)) == expected


def test_a_fallback_strips_what_only_the_first_provider_understands(outbound: Outbound) -> None:
    call = chat("m", provider={"order": ["x"]}, transforms=[], temperature=1, top_k=3)
    made = default_upstream(outbound, is_fallback=True).prepare(call)
    assert made.body == b'{"model":"m","temperature":1}'


def test_a_model_is_shown_by_the_providers_name(outbound: Outbound) -> None:
    upstream = default_upstream(outbound, models=SOME_MODELS)
    target = upstream.prepare(call_of("/v1/models/small?x=1")).head.target
    assert target == "/api/v1/models/org/small-1"
    assert upstream.prepare(call_of("/v1/models")).head.target == "/api/v1/models"


@pytest.mark.parametrize(
    "path", ["../admin", "%2e%2e/admin", "a/../../b", "a%2F..%2Fb", "..%5Cb", "a//b", "a%0d%0ab"]
)
def test_a_models_name_does_not_lead_elsewhere(outbound: Outbound, path: str) -> None:
    call = call_of("/v1/models/" + path)
    assert refusal(default_upstream(outbound), call) is FailureKind.MODEL_NOT_FOUND


def test_a_models_name_stays_a_path(outbound: Outbound) -> None:
    made = by_url(outbound).prepare(call_of("/v1/models/org%2Fm%3Fx:4b"))
    assert made.head.target == "/v1/models/org/m%3Fx:4b"


@pytest.mark.parametrize("model", ["small", "else", None])
def test_an_upload_passes_a_list_only_by_the_providers_own_name(
    outbound: Outbound, model: str | None
) -> None:
    upstream = default_upstream(outbound, models=SOME_MODELS)
    path = "/v1/audio/transcriptions"
    assert refusal(upstream, call_of(path, None, model)) is FailureKind.MODEL_NOT_FOUND
    assert upstream.prepare(call_of(path, None, "same")).model == "same"


@pytest.mark.parametrize(
    ("framing", "status", "code"),
    [
        (REPLAYABLE_UPLOAD_BYTES + 1, 413, "upload_too_large"),
        (Open.CHUNKED, 411, "length_required"),
    ],
)
def test_an_upload_that_is_not_read_does_not_pass_a_list(
    outbound: Outbound, framing: Framing, status: int, code: str
) -> None:
    call = upload_that_is_not_kept(framing)
    with pytest.raises(AttemptFailed, match="which model") as caught:
        default_upstream(outbound, models=SOME_MODELS).prepare(call)
    failure = caught.value.failure
    assert (failure.kind, failure.status) == (FailureKind.REJECTED, status)
    assert failure.error.code == code
    assert default_upstream(outbound).prepare(call).body is call.body
    assert by_url(outbound).prepare(call).body is call.body


def upload_that_is_not_kept(framing: Framing) -> Call:
    body = IncomingBody(Unread(), framing, buffer_bytes=1024, max_overhead_bytes=1024)
    return msgspec.structs.replace(call_of("/v1/audio/transcriptions"), body=body)


class Unread:
    """A connection that nothing is read from."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def test_a_rebuilt_body_is_called_what_it_is(outbound: Outbound) -> None:
    body = b'{"model":"small","x":"&model=huge&"}'
    call = call_of("/v1/chat/completions", body, "small")
    kinds = ((b"content-type", b"application/x-www-form-urlencoded"), (b"content-type", b"x/y"))
    head = RequestHead("POST", "/v1/chat/completions", kinds)
    call = msgspec.structs.replace(call, head=head)
    made = default_upstream(outbound, models=SOME_MODELS).prepare(call)
    assert [value for name, value in made.head.headers if name == b"content-type"] == [
        b"application/json"
    ]
    unchanged = default_upstream(outbound).prepare(call).head.headers
    assert [value for name, value in unchanged if name == b"content-type"] == [
        value for _, value in kinds
    ]


def test_messages_go_to_a_provider_that_has_them(outbound: Outbound) -> None:
    call = call_of("/v1/messages", b'{"model":"m"}', "m")
    assert refusal(default_upstream(outbound), call) is FailureKind.REJECTED
    made = default_upstream(outbound, anthropic_messages=True).prepare(call)
    assert made.head.target == "/api/v1/messages"


def test_plans_may_use_it_as_the_settings_say(outbound: Outbound) -> None:
    section = DefaultProviderSection(base_url=BASE, plans=("pro",))
    provider = DefaultProvider(section, RouterSection(), outbound)
    assert (provider.is_configured, provider.admits("pro")) == (True, True)
    assert (provider.admits("free"), provider.admits(None)) == (False, False)
    nobody = DefaultProvider(DefaultProviderSection(), RouterSection(), outbound)
    assert (nobody.is_configured, nobody.admits(None)) == (False, True)


@pytest.mark.parametrize(
    "url", ["ai.example.com", "ftp://ai.example.com", "https://", "https://u:p@h/v1", "http://h/?x"]
)
def test_the_operators_address_is_one(outbound: Outbound, url: str) -> None:
    with pytest.raises(ConfigError, match="provider's address"):
        DefaultProvider(DefaultProviderSection(base_url=url), RouterSection(), outbound)


@pytest.mark.parametrize(
    ("url", "target", "host"),
    [
        ("https://llm.example.com", "/v1/chat/completions", b"llm.example.com"),
        ("https://llm.example.com:8443/ollama/v1/", "/ollama/v1/chat/completions", None),
        ("https://[2606:4700::1111]/v1", "/v1/chat/completions", b"[2606:4700::1111]"),
    ],
)
def test_a_users_server_is_asked_at_its_address(
    outbound: Outbound, url: str, target: str, host: bytes | None
) -> None:
    head = by_url(outbound, url, key="users-key").prepare(chat("m")).head
    assert head.target == target
    assert head.header(b"host") == (host or b"llm.example.com:8443")
    assert head.header(b"authorization") == b"Bearer users-key"


def test_a_users_server_without_a_key_is_not_shown_the_session(outbound: Outbound) -> None:
    made = by_url(outbound).prepare(chat("m", provider={}))
    assert made.head.header(b"authorization") is None
    assert made.body == b'{"model": "m", "provider": {}}'


def test_an_address_that_may_no_longer_be_used_is_refused(outbound: Outbound) -> None:
    with pytest.raises(Refusal) as caught:
        by_url(outbound, "https://127.0.0.1/v1")
    assert caught.value.code == "address_refused"


async def test_an_address_that_leads_inside_is_told_to_its_user(outbound: Outbound) -> None:
    guard = AddressGuard(("10.0.0.0/8",))  # so that the inner name is taken, and dialled
    upstream = self_hosted_by_url("https://localhost:8443", None, guard, outbound, Timers(1, 2, 3))
    with pytest.raises(AttemptFailed, match="private or reserved") as caught:
        await upstream.acquire()
    assert caught.value.failure.error.code == "address_refused"


async def test_where_the_operators_server_is_is_not_told(outbound: Outbound) -> None:
    upstream = default_upstream(outbound, base_url="http://127.0.0.1:1/v1")
    with pytest.raises(AttemptFailed) as caught:
        await upstream.acquire()
    assert caught.value.failure.kind is FailureKind.UNREACHABLE
    assert "127.0.0.1" not in caught.value.failure.error.message


def test_a_failure_is_the_providers(outbound: Outbound) -> None:
    upstream = by_url(outbound)
    assert upstream.provider is ProviderName.SELF_HOSTED
    assert upstream.explain(401, (), b"").kind is FailureKind.KEY_REFUSED
    assert upstream.explain_error(msgspec.Raw(b'"broken"')).kind is FailureKind.ERROR_IN_ANSWER
