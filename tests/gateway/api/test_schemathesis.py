"""Schemathesis holds the running gateway to its own document.

Every operation is asked with data that the document allows and with data that it forbids,
drawn from a fixed seed. A user of its own asks each, so that none finds what another left behind.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks as of_http
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks as of_openapi

from byoai_gateway.config import LimitsSection
from byoai_gateway.provider_config import DefaultProviderSection, OpenRouterSection
from byoai_shared.joincode import decode
from byoai_shared.keys import make_csr, new_key
from byoai_shared.secret import Secret
from support.control import FakeAgent, FakeClock, bearer, gateway_config
from support.gateway import Gateway, open_gateway
from support.provider import Provider, Request, providing, sound
from support.provider_script import Die, Script, refusal, stream, token, whole

EXAMPLES = 25
SUPPRESSED = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
PATIENCE_S = 10.0
MANY = 1_000_000
TAGS = ("AI", "Settings", "Providers", "Tunnels", "Agents", "Health")
FORM = "multipart/form-data"
CONFIG = {
    # Who asks is for `test_openapi` to look at; here a user always does.
    "generation": {"with-security-parameters": False},
    # Some rules are between fields, or between a field and the settings: no schema says them.
    "checks": {
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", "400", "401", "403", "404", "409", "410"]
        }
    },
}

# Schemathesis leaves the parameters of its generic types open, and so what it makes of them.
Case = Any
Operation = Any
Schema = Any
Check = Any
general, specific = cast("Any", of_http), cast("Any", of_openapi)
Config = cast("Any", schemathesis.Config)

CONFORMANCE: tuple[Check, ...] = (
    specific.status_code_conformance,
    specific.content_type_conformance,
    specific.response_headers_conformance,
    specific.response_schema_conformance,
)
CHECKS: tuple[Check, ...] = (
    *CONFORMANCE,
    general.not_a_server_error,
    specific.positive_data_acceptance,
)
REJECTION: Check = specific.negative_data_rejection
"""Not for forms: they are the provider's to read, and to refuse."""


def speaking(request: Request) -> Script:
    """A provider that is well, and speaks."""
    if request.target.endswith("/audio/speech"):
        return whole(b"RIFF", kind="audio/wav")
    return sound(request)


@pytest.fixture
async def provider() -> AsyncGenerator[Provider]:
    async with providing() as provider:
        provider.otherwise = speaking
        yield provider


@pytest.fixture
async def gateway(tmp_path: Path, clock: FakeClock, provider: Provider) -> AsyncGenerator[Gateway]:
    config = gateway_config(
        tmp_path,
        limits=LimitsSection(
            requests_per_minute=MANY,
            changes_per_minute=MANY,
            connection_tests_per_minute=MANY,
            join_tries_per_minute=MANY,
        ),
        default_provider=DefaultProviderSection(
            base_url=provider.url, key=Secret("operators"), anthropic_messages=True
        ),
        openrouter=OpenRouterSection(base_url=provider.url),
    )
    config = msgspec.structs.replace(config, relays=())
    async with open_gateway(config, clock) as gateway:
        yield gateway


def without_refusals_of_providers(document: Any) -> Any:
    """A provider that is well refuses nothing, so that each refusal has to be one of ours."""
    for of_path in document["paths"].values():
        for operation in of_path.values():
            operation["responses"].pop("4XX", None)
    return document


async def schema_of(
    gateway: Gateway, change: Callable[[Any], Any] = without_refusals_of_providers
) -> Schema:
    """The document as it is served, but for a change of the test's."""
    document = (await gateway.ask(path="/openapi.json", method="GET")).json
    config = Config.from_dict(CONFIG)
    return schemathesis.openapi.from_dict(change(document), config=config)


def operations(schema: Schema) -> Iterator[Operation]:
    for result in schema.get_all_operations():
        yield result.ok()


def can_be_misused(operation: Operation) -> bool:
    """Whether it takes anything that could be wrong: in a path, every word may be a name."""
    return bool(operation.body or operation.query)


class Asking:
    """Asks one gateway, from a thread that is not the gateway's."""

    def __init__(self, gateway: Gateway, session: requests.Session, schema: Schema) -> None:
        self.schema = schema
        self._gateway = gateway
        self._session = session

    def fuzz(self, operation: Operation, mode: schemathesis.GenerationMode) -> None:
        """Ask with many examples of what the document allows, or forbids."""
        has_form = any(body.media_type == FORM for body in operation.body)
        checks = CHECKS if has_form else (*CHECKS, REJECTION)

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=SUPPRESSED,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def hold(case: Case) -> None:
            self.ask(case, operation.label, checks)

        hold()

    def call(self, label: str, user: str, body: Any = None, **path: str) -> Any:
        """Ask for exactly this; only what the document says of the answer is checked."""
        operation = self.schema.find_operation_by_label(label)
        given = {"body": msgspec.to_builtins(body), "media_type": "application/json"}
        case = operation.Case(path_parameters=path, **(given if body is not None else {}))
        return self.ask(case, user, CONFORMANCE)

    def ask(self, case: Case, user: str, checks: Sequence[Check]) -> Any:
        """Ask once; answers a `schemathesis.Response`."""
        return case.call_and_validate(
            base_url=self._gateway.url,
            session=self._session,
            headers={"authorization": bearer(user, self._gateway.clock)},
            checks=list(checks),
            timeout=PATIENCE_S,
        )


async def asking(gateway: Gateway, schema: Schema, work: Callable[[Asking], None]) -> None:
    """Do the work in a thread: schemathesis waits for its answers."""

    def with_session() -> None:
        with closing(requests.Session()) as session:
            work(Asking(gateway, session, schema))

    await asyncio.to_thread(with_session)


async def test_every_part_of_the_document_is_asked(gateway: Gateway) -> None:
    schema = await schema_of(gateway)
    assert {tag for it in operations(schema) for tag in it.tags or ()} == set(TAGS)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
@pytest.mark.parametrize("tag", TAGS)
async def test_the_gateway_does_what_the_document_says(
    gateway: Gateway, tag: str, mode: schemathesis.GenerationMode
) -> None:
    schema = await schema_of(gateway)

    def ask_all(asking: Asking) -> None:
        for operation in operations(schema):
            if tag in operation.tags and (mode.is_positive or can_be_misused(operation)):
                asking.fuzz(operation, mode)

    await asking(gateway, schema, ask_all)


REFUSALS = (400, 401, 402, 403, 404, 407, 408, 409, 413, 418, 422, 429, 520, 529)


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_providers_refusal_is_told_as_the_document_says(
    gateway: Gateway, provider: Provider, path: str, status: int
) -> None:
    date = "Tue, 14 Nov 2023 22:13:30 GMT"
    provider.always(refusal(status, headers={"retry-after": date, "x-request-id": "req_1"}))
    await ask_once(gateway, path)


@pytest.mark.parametrize(
    "script",
    [
        *(refusal(status, headers={"retry-after": "9"}) for status in (500, 501, 502, 503, 504)),
        (Die(),),
        whole(b"no JSON"),
        stream(token("half"), Die()),
    ],
)
async def test_a_providers_failure_is_told_as_the_document_says(
    gateway: Gateway, provider: Provider, script: Script
) -> None:
    provider.always(script)
    await ask_once(gateway, "/v1/chat/completions")


async def ask_once(gateway: Gateway, path: str) -> None:
    def work(asking: Asking) -> None:
        asking.call(f"POST {path}", "alice", {"model": "a", "messages": []})

    await asking(gateway, await schema_of(gateway, lambda document: document), work)


@pytest.mark.parametrize("wants_stream", [True, False])
async def test_a_fallback_is_told_as_the_document_says(
    gateway: Gateway, provider: Provider, *, wants_stream: bool
) -> None:
    key = "sk-or-v1-alices-own-key"
    await gateway.prefer(aiProvider="openrouter", openRouterApiKey=key, fallbackToDefault=True)
    provider.expect(refusal(401))

    def work(asking: Asking) -> None:
        body: dict[str, Any] = {"model": "a", "messages": [], "stream": wants_stream}
        response = asking.call("POST /v1/chat/completions", "alice", body)
        assert response.status_code == 200
        assert response.headers["x-byoai-provider"] == ["default"]
        assert response.headers["x-byoai-fallback-reason"] == ["key_refused"]

    await asking(gateway, await schema_of(gateway), work)


async def test_a_tunnels_life_is_as_the_document_says(gateway: Gateway) -> None:
    user = "alice"

    def live(asking: Asking) -> None:
        def call(label: str, body: Any = None, status: int = 200, agent: str = "") -> Any:
            path = {"tunnelId": which, "agentId": agent}
            names = {name: value for name, value in path.items() if f"{{{name}}}" in label}
            response = asking.call(label, user, body, **names)
            assert response.status_code == status, label
            return response.json()

        which = ""
        model = {"name": "smollm2", "capabilities": ["text-generation"]}
        invited = call("POST /api/tunnel/register", {"modelInfo": model}, 201)
        code = decode(invited["joinCode"])
        which = code.tunnel_id
        agent = FakeAgent(gateway.control, code.tunnel_id)
        request = agent.enrol_request(code.secret.reveal())
        agent.agent_id = call("POST /agent/v1/enrol", request)["agentId"]
        # The code was used.
        assert asking.call("POST /agent/v1/enrol", user, request).status_code in {403, 409, 410}
        assertion = agent.assertion("/agent/v1/token")
        call("POST /agent/v1/token", {"assertion": assertion})
        csr = make_csr(new_key()).decode()
        assertion = agent.assertion("/agent/v1/renew")
        call("POST /agent/v1/renew", {"assertion": assertion, "csrPem": csr})
        call("GET /api/tunnel/status/{tunnelId}")
        assert call("GET /api/tunnel")["tunnels"]
        call("POST /api/tunnel/{tunnelId}/rotate")
        call("POST /api/tunnel/{tunnelId}/agents", status=201)
        call("DELETE /api/tunnel/{tunnelId}/agents/{agentId}", agent=agent.agent_id)
        call("DELETE /api/tunnel/{tunnelId}")
        call("GET /api/tunnel/status/{tunnelId}", status=404)

    await asking(gateway, await schema_of(gateway), live)


async def test_a_document_that_lies_is_noticed(gateway: Gateway) -> None:
    def lie(document: Any) -> Any:
        answer = document["paths"]["/healthz"]["get"]["responses"]["200"]
        answer["content"]["application/json"]["schema"]["properties"]["status"]["const"] = "dead"
        return document

    def work(asking: Asking) -> None:
        with pytest.raises(FailureGroup, match="violates schema"):
            asking.call("GET /healthz", "alice")

    await asking(gateway, await schema_of(gateway, lie), work)
