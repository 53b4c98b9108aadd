import hashlib
import ssl
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from byoai_agent.control import Gateway, GatewayError, GatewayRefused, GatewayUnreachable
from byoai_agent.enrol import (
    NO_FORMER,
    EnrolmentError,
    Former,
    Joined,
    enrol,
    former_agent,
    gateway_of,
    require_free,
)
from byoai_agent.state import StateDirectory, StateError
from byoai_shared.enrolment import EnrolRequest, EnrolResponse
from byoai_shared.errors import ConfigError
from byoai_shared.identity import GatewayIdentity, key_fingerprint, key_thumbprint, new_tunnel_id
from byoai_shared.joincode import JoinCode
from byoai_shared.keys import key_from_pem
from byoai_shared.secret import Secret
from byoai_shared.tls import server_context
from support.authority import Authority
from support.fake_gateway import FakeGateway, Refusing, running


def ca_hash(pem: bytes) -> bytes:
    certificate = x509.load_pem_x509_certificate(pem)
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def private(gateway: FakeGateway, authority: Authority | None = None) -> ssl.SSLContext:
    credentials = (authority or gateway.gateway_ca).credentials(GatewayIdentity("gw"))
    return server_context(credentials, client_ca_pem=None)


def code_for(gateway: FakeGateway, ca_sha256: bytes | None = None) -> JoinCode:
    return JoinCode(gateway.url, new_tunnel_id(), Secret("s" * 43), ca_sha256)


async def join(code: JoinCode) -> Joined:
    gateway, ca_pem = await gateway_of(code)
    return await enrol(code, gateway, ca_pem, ("http://127.0.0.1:8000",))


async def test_joining_gives_an_identity(gateway: FakeGateway) -> None:
    code = code_for(gateway)
    joined = await join(code)
    membership = joined.membership
    assert (membership.tunnel_id, membership.agent_id) == (code.tunnel_id, "agent-1")
    assert membership.owner == "alice"
    assert membership.relays == ("wss://127.0.0.1:1",)
    assert membership.upstreams == ("http://127.0.0.1:8000",)
    end_to_end = key_from_pem(joined.end_to_end.key_pem)
    assert membership.key_fingerprint == key_fingerprint(end_to_end.public_key())


async def test_no_private_key_leaves_the_host(gateway: FakeGateway) -> None:
    joined = await join(code_for(gateway))
    (sent,) = gateway.enrolled
    raw = msgspec.json.encode(sent)
    assert b"PRIVATE" not in raw
    assert sent.secret == "s" * 43
    assert joined.link.key_pem != joined.end_to_end.key_pem


async def test_a_private_ca_is_taken_on_the_codes_word() -> None:
    gateway = FakeGateway()
    async with running(gateway, private(gateway)):
        joined = await join(code_for(gateway, ca_hash(gateway.gateway_ca.pem)))
        assert joined.membership.gateway_ca_pem == gateway.gateway_ca.pem.decode()
        assert gateway.calls == ["/agent/v1/ca", "/agent/v1/enrol"]


async def test_somebody_in_between_with_another_ca_learns_nothing() -> None:
    gateway, liar = FakeGateway(), Authority("liar")
    async with running(gateway, private(gateway, liar)):
        expected = ca_hash(gateway.gateway_ca.pem)
        gateway.gateway_ca = liar
        with pytest.raises(EnrolmentError, match="somebody may be in between"):
            await join(code_for(gateway, expected))
        assert gateway.calls == ["/agent/v1/ca"]


async def test_somebody_in_between_who_repeats_the_right_ca_learns_nothing() -> None:
    """The bundle is public; only the gateway has a certificate that it signed."""
    gateway, liar = FakeGateway(), Authority("liar")
    async with running(gateway, private(gateway, liar)):
        with pytest.raises(GatewayUnreachable, match="is not trusted"):
            await join(code_for(gateway, ca_hash(gateway.gateway_ca.pem)))
        assert gateway.enrolled == []


async def test_a_gateway_with_an_unknown_ca_is_not_trusted() -> None:
    gateway = FakeGateway()
    async with running(gateway, private(gateway)):
        with pytest.raises(GatewayUnreachable, match="is not trusted"):
            await join(code_for(gateway))
        assert gateway.calls == []


@pytest.mark.parametrize("code", ["join_code_used", "join_code_expired", "join_code_unknown"])
async def test_a_spent_code_is_final(gateway: FakeGateway, code: str) -> None:
    gateway.refusals = [Refusing(403, code, "get a new code")]
    with pytest.raises(GatewayRefused, match="get a new code") as refused:
        await join(code_for(gateway))
    assert refused.value.is_fatal


async def test_too_many_tries_is_not_final(gateway: FakeGateway) -> None:
    gateway.refusals = [Refusing(429, "rate_limited", "5 tries a minute")]
    with pytest.raises(GatewayRefused) as refused:
        await join(code_for(gateway))
    assert not refused.value.is_fatal


async def test_a_gateway_that_is_not_there_is_not_final() -> None:
    gateway = FakeGateway()
    async with running(gateway):
        code = code_for(gateway)
    with pytest.raises(GatewayUnreachable, match="cannot be reached") as failed:
        await join(code)
    assert not failed.value.is_fatal


@pytest.mark.parametrize("url", ["http://gateway.example", "ftp://x", "https://"])
async def test_secrets_do_not_travel_in_clear(url: str) -> None:
    code = JoinCode(url, new_tunnel_id(), Secret("s" * 43))
    with pytest.raises(ConfigError):
        await join(code)


class Swapping(FakeGateway):
    """Answers with what is not ours."""

    def __init__(self, **changes: object) -> None:
        super().__init__()
        self.changes = changes

    def enrol(self, request: EnrolRequest) -> EnrolResponse:
        return msgspec.structs.replace(super().enrol(request), **self.changes)


async def test_a_certificate_for_another_key_is_not_taken() -> None:
    other = FakeGateway()
    async with running(other):
        joined = await join(code_for(other))
    foreign = joined.link.certificate_pem.decode()
    async with running(Swapping(certificate_pem=foreign)) as gateway:
        with pytest.raises(EnrolmentError, match="another key"):
            await join(code_for(gateway))


async def test_another_fingerprint_is_not_taken() -> None:
    async with running(Swapping(key_fingerprint="SHA256:none")) as gateway:
        with pytest.raises(EnrolmentError, match="fingerprint"):
            await join(code_for(gateway))


async def test_another_name_is_not_taken() -> None:
    async with running(Swapping(agent_id="agent-2")) as gateway:
        with pytest.raises(EnrolmentError, match="a certificate for agent agent-1"):
            await join(code_for(gateway))


async def test_what_is_no_gateway_is_told(gateway: FakeGateway) -> None:
    lost = Gateway(gateway.url + "/elsewhere")
    code = code_for(gateway)
    with pytest.raises(GatewayError):
        await enrol(code, lost, None, ())


async def test_a_joined_directory_is_not_joined_again(gateway: FakeGateway, tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    require_free(state, replace=False)
    joined = await join(code_for(gateway))
    state.save(joined.membership, joined.link, joined.end_to_end)
    with pytest.raises(StateError, match=r"lives in .* already.*--replace"):
        require_free(state, replace=False)
    require_free(state, replace=True)


async def test_the_agent_whose_state_is_here_is_named_to_its_own_tunnel_only(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    state = StateDirectory(tmp_path / "state")
    assert former_agent(state, "any") == NO_FORMER
    joined = await join(code_for(gateway))
    state.save(joined.membership, joined.link, joined.end_to_end)
    public_key = key_from_pem(joined.link.key_pem).public_key()
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    former = Former("agent-1", key_thumbprint(spki))
    assert former_agent(state, joined.membership.tunnel_id) == former
    assert former_agent(state, new_tunnel_id()) == NO_FORMER


async def test_a_former_agent_whose_link_key_is_damaged_is_named_without_it(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    state = StateDirectory(tmp_path / "state")
    require_free(state, replace=False)
    joined = await join(code_for(gateway))
    state.save(joined.membership, joined.link, joined.end_to_end)
    (state.path / "link.pem").write_bytes(b"half of a k")
    assert former_agent(state, joined.membership.tunnel_id) == Former("agent-1")


async def test_joining_again_names_the_former_agent(gateway: FakeGateway) -> None:
    code = code_for(gateway)
    gateway_, ca_pem = await gateway_of(code)
    await enrol(code, gateway_, ca_pem, (), replaces=Former("agent-0", "its key"))
    assert [(it.replaces, it.replaces_key) for it in gateway.enrolled] == [("agent-0", "its key")]
