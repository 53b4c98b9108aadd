import hashlib
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from byoai_gateway.config import GatewayConfig, LimitsSection, ListenSection
from byoai_shared.enrolment import (
    FATAL_CODES,
    EnrolResponse,
    RenewRequest,
    RenewResponse,
    TokenRequest,
    TokenResponse,
)
from byoai_shared.joincode import decode
from byoai_shared.keys import make_csr, new_key
from support.control import Api, FakeAgent, FakeClock, open_api


async def post(api: Api, path: str, request: msgspec.Struct) -> tuple[int, bytes]:
    async with api.http.post(path, data=msgspec.json.encode(request)) as response:
        return response.status, await response.read()


async def code_and_agent(api: Api) -> tuple[str, FakeAgent]:
    code = decode((await api.register("alice"))["joinCode"])
    return code.secret.reveal(), FakeAgent(api.control, code.tunnel_id)


def error_code(body: bytes) -> str:
    code: str = msgspec.json.decode(body)["error"]["code"]
    return code


async def test_an_agents_first_days_over_http(api: Api) -> None:
    secret, agent = await code_and_agent(api)
    status, body = await post(api, "/agent/v1/enrol", agent.enrol_request(secret))
    assert status == 200
    agent.agent_id = msgspec.json.decode(body, type=EnrolResponse).agent_id

    token = TokenRequest(assertion=agent.assertion("/agent/v1/token"))
    status, body = await post(api, "/agent/v1/token", token)
    assert status == 200
    assert msgspec.json.decode(body, type=TokenResponse).relays == ["wss://relay:1"]

    following = new_key()
    renewal = RenewRequest(
        assertion=agent.assertion("/agent/v1/renew"), csr_pem=make_csr(following).decode()
    )
    status, body = await post(api, "/agent/v1/renew", renewal)
    assert status == 200
    msgspec.json.decode(body, type=RenewResponse)

    status, body = await post(api, "/agent/v1/renew", renewal)
    assert (status, error_code(body)) == (401, "assertion_refused")


async def test_what_is_fatal_for_an_agent_says_so(api: Api) -> None:
    secret, agent = await code_and_agent(api)
    await post(api, "/agent/v1/enrol", agent.enrol_request(secret))
    status, body = await post(api, "/agent/v1/enrol", agent.enrol_request(secret))
    assert (status, error_code(body)) == (410, "join_code_used")
    status, body = await post(api, "/agent/v1/enrol", agent.enrol_request("other"))
    assert (status, error_code(body)) == (403, "join_code_unknown")
    assert {"join_code_used", "join_code_unknown"} <= FATAL_CODES


async def test_one_address_tries_five_codes_a_minute(api: Api) -> None:
    secret, agent = await code_and_agent(api)
    for _ in range(5):
        status, _ = await post(api, "/agent/v1/enrol", agent.enrol_request("made up"))
        assert status == 403
    async with api.http.post(
        "/agent/v1/enrol", data=msgspec.json.encode(agent.enrol_request(secret))
    ) as response:
        assert response.status == 429
        assert 1 <= int(response.headers["Retry-After"]) <= 60
        assert error_code(await response.read()) == "too_many_tries"


async def test_behind_a_trusted_proxy_each_client_has_its_own_tries(
    config: GatewayConfig, clock: FakeClock
) -> None:
    limits = LimitsSection(join_tries_per_minute=1, trusted_proxies=("127.0.0.0/8",))
    async with open_api(msgspec.structs.replace(config, limits=limits), clock) as api:
        _, agent = await code_and_agent(api)
        body = msgspec.json.encode(agent.enrol_request("made up"))
        statuses: list[int] = []
        for address in ("203.0.113.1", "203.0.113.2", "203.0.113.1"):
            headers = {"X-Forwarded-For": address}
            async with api.http.post("/agent/v1/enrol", data=body, headers=headers) as response:
                statuses.append(response.status)
    assert statuses == [403, 403, 429]


@pytest.mark.parametrize("path", ["/agent/v1/enrol", "/agent/v1/renew", "/agent/v1/token"])
async def test_bodies_are_bounded_and_strict(api: Api, path: str) -> None:
    for body, expected in (
        (b"x" * (64 * 1024 + 1), 413),
        (b"not json", 400),
        (b"\xff", 400),
        (b"[" * 60_000, 400),
        (b"", 400),
        (b'{"assertion": "a", "unheardOf": 1}', 400),
    ):
        async with api.http.post(path, data=body) as response:
            assert response.status == expected, body[:20]
            answer = await response.json()
            assert set(answer["error"]) == {"message", "type", "param", "code"}


async def test_a_chunked_body_over_the_limit_is_refused_too(api: Api) -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        for _ in range(70):
            yield b"x" * 1024

    async with api.http.post("/agent/v1/token", data=chunks()) as response:
        assert response.status == 413
        assert error_code(await response.read()) == "body_too_large"


@pytest.mark.parametrize("before", ["\0", "é", "# a comment\0\n"])
async def test_a_certificate_with_more_than_pem_around_it_is_refused(api: Api, before: str) -> None:
    secret, agent = await code_and_agent(api)
    agent.end_to_end_pem = before + agent.end_to_end_pem
    status, answer = await post(api, "/agent/v1/enrol", agent.enrol_request(secret))
    assert (status, error_code(answer)) == (400, "invalid_body")


async def test_a_refused_value_is_not_repeated(api: Api) -> None:
    body = {"tunnelId": "a", "secret": ["a canary"], "csrPem": "", "endToEndCertificatePem": ""}
    async with api.http.post("/agent/v1/enrol", json=body) as response:
        text = await response.text()
        assert response.status == 400
        assert "secret" in text
        assert "canary" not in text


async def test_the_private_ca_is_served_and_stands_in_join_codes(
    tmp_path: Path, config: GatewayConfig, clock: FakeClock, api: Api
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(api.control.authorities.services.certificate_pem)
    config = msgspec.structs.replace(config, listen=ListenSection(ca=ca))
    async with open_api(config, clock) as private:
        async with private.http.get("/agent/v1/ca") as response:
            assert response.status == 200
            served = x509.load_pem_x509_certificate(await response.read())
        code = decode((await private.register("alice"))["joinCode"])
        assert code.ca_sha256 == hashlib.sha256(served.public_bytes(Encoding.DER)).digest()
        agent = FakeAgent(private.control, code.tunnel_id)
        assert (await agent.enrol(code.secret.reveal())).gateway_ca_pem == ca.read_text()


async def test_without_a_private_ca_there_is_none_to_fetch(api: Api) -> None:
    status, answer = await api.call("GET", "/agent/v1/ca")
    assert (status, answer["error"]["code"]) == (404, "no_private_ca")
