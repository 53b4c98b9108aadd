import asyncio
import io
from collections.abc import Iterator
from typing import NoReturn

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import structs

from byoai_gateway.agent_instances import instances_of
from byoai_gateway.config import GatewayConfig
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.database import DatabaseUnavailable
from byoai_gateway.engines import Fault
from byoai_gateway.refusals import Refusal
from byoai_shared import logs
from byoai_shared.enrolment import EnrolResponse, OtherHost, TokenRequest
from byoai_shared.identity import AgentIdentity, certificate_identity, certificate_thumbprint
from byoai_shared.keys import new_key
from byoai_shared.protocol.trust import agent_subject
from byoai_shared.tokens import TokenVerifier, TunnelClaims, keys_from_jwks
from support.control import FakeAgent, FakeClock, end_to_end_pem, invitation, joined_agent


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logs.configure(form="json", stream=stream)
    yield stream
    logs.configure(form="json")


def code_of(caught: pytest.ExceptionInfo[Refusal]) -> str:
    return caught.value.code


async def verified(control: ControlPlane, token: str, certificate_pem: str) -> TunnelClaims:
    """What a relay would make of a token on a link with that certificate."""
    trust = await control.trust.since(0)
    keys = keys_from_jwks(trust.keys)
    verifier = TokenVerifier(issuer=trust.issuer, audience=trust.audience, keys=keys)
    thumbprint = certificate_thumbprint(der(certificate_pem))
    return verifier.verify(token, certificate_thumbprint=thumbprint, now=control.clock())


def der(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)


async def two_agents(control: ControlPlane) -> tuple[FakeAgent, FakeAgent]:
    """Two agents of one tunnel."""
    agent = await joined_agent(control)
    fellow = FakeAgent(control, agent.tunnel_id)
    invited = await control.registry.invite("alice", agent.tunnel_id)
    await fellow.enrol(invited.secret.reveal())
    return agent, fellow


async def renewed_often(agent: FakeAgent, times: int) -> None:
    for _ in range(times):
        following = new_key()
        await agent.renew(following)
        agent.key = following
        await agent.token()


async def code_of_renewal(agent: FakeAgent, by: ec.EllipticCurvePrivateKey) -> str:
    """How a renewal that is signed by an old key is refused."""
    with pytest.raises(Refusal) as caught:
        await agent.renew(new_key(), by=by)
    return code_of(caught)


async def locked_agent(
    control: ControlPlane, user: str = "alice", *, renewals: int = 1
) -> tuple[FakeAgent, ec.EllipticCurvePrivateKey]:
    """An agent that a copy of its state has locked, and the copy's key."""
    agent = await joined_agent(control, user)
    copied = agent.key
    await renewed_often(agent, renewals)
    assert await code_of_renewal(agent, copied) == "key_replaced"
    return agent, copied


async def unlocked_agent(
    control: ControlPlane, *, renewals: int
) -> tuple[FakeAgent, ec.EllipticCurvePrivateKey]:
    """The same, once its owner has unlocked it."""
    agent, copied = await locked_agent(control, renewals=renewals)
    await control.registry.unlock_agent("alice", agent.tunnel_id, agent.agent_id)
    return agent, copied


async def joined_again(
    control: ControlPlane, agent: FakeAgent, key: ec.EllipticCurvePrivateKey
) -> FakeAgent:
    """Another agent of the tunnel, which joined on a host that holds a key of this one."""
    again = FakeAgent(control, agent.tunnel_id)
    again.takes_over(agent, key)
    invited = await control.registry.invite("alice", agent.tunnel_id)
    await again.enrol(invited.secret.reveal())
    return again


async def denied_by(control: ControlPlane) -> list[str]:
    """Whom relays must refuse."""
    return [it.subject for it in (await control.trust.since(0)).denials]


async def is_locked(control: ControlPlane, agent: FakeAgent) -> bool:
    found = await control.registry.agents_of(agent.tunnel_id)
    return any(it.agent_id == agent.agent_id and it.locked_at is not None for it in found)


class TestEnrolling:
    async def test_a_code_makes_an_agent_with_all_it_needs(self, control: ControlPlane) -> None:
        invited = await invitation(control)
        agent = FakeAgent(control, invited.tunnel_id)
        answer = await agent.enrol(invited.secret.reveal())
        identity = AgentIdentity(invited.tunnel_id, answer.agent_id)
        assert certificate_identity(der(answer.certificate_pem)) == identity
        assert answer.owner == "alice"
        assert answer.relays == ["wss://relay:1"]
        assert answer.services_ca_pem == control.authorities.services.certificate_pem
        assert answer.gateway_ca_pem is None
        assert answer.server_time == control.clock()
        assert answer.certificate_expires_at == control.clock() + 86_400
        assert answer.token_expires_at == control.clock() + 900
        claims = await verified(control, answer.token, answer.certificate_pem)
        assert (claims.tunnel_id, claims.generation) == (invited.tunnel_id, 1)

    async def test_the_certificate_holds_the_agents_key_and_is_pinned(
        self, control: ControlPlane
    ) -> None:
        invited = await invitation(control)
        agent = FakeAgent(control, invited.tunnel_id)
        answer = await agent.enrol(invited.secret.reveal())
        certificate = x509.load_pem_x509_certificate(answer.certificate_pem.encode())
        assert certificate.public_key() == agent.key.public_key()
        pins = await control.lookup.pinned_certificates(invited.tunnel_id)
        assert pins == (agent.end_to_end_pem.encode(),)

    async def test_what_an_agent_says_of_itself_is_kept_printable(
        self, control: ControlPlane
    ) -> None:
        invited = await invitation(control)
        request = FakeAgent(control, invited.tunnel_id).enrol_request(invited.secret.reveal())
        hostile = structs.replace(request, hostname="gpu\x00\x1b[31m-1\n", agent_version="v" * 200)
        await control.enrolment.enrol(hostile)
        (agent,) = await control.registry.agents_of(invited.tunnel_id)
        assert agent.hostname == "gpu[31m-1"
        assert agent.agent_version == "v" * 64

    async def test_a_code_works_once(self, control: ControlPlane) -> None:
        invited = await invitation(control)
        await FakeAgent(control, invited.tunnel_id).enrol(invited.secret.reveal())
        with pytest.raises(Refusal) as caught:
            await FakeAgent(control, invited.tunnel_id).enrol(invited.secret.reveal())
        assert code_of(caught) == "join_code_used"
        assert len(await control.registry.agents_of(invited.tunnel_id)) == 1

    async def test_of_fifty_at_once_exactly_one_wins(self, control: ControlPlane) -> None:
        invited = await invitation(control)
        agents = [FakeAgent(control, invited.tunnel_id) for _ in range(50)]
        answers = await asyncio.gather(
            *(agent.enrol(invited.secret.reveal()) for agent in agents), return_exceptions=True
        )
        won = [answer for answer in answers if isinstance(answer, EnrolResponse)]
        lost = {answer.code for answer in answers if isinstance(answer, Refusal)}
        assert len(won) == 1
        assert lost == {"join_code_used"}
        assert len(await control.registry.agents_of(invited.tunnel_id)) == 1

    async def test_two_gateways_on_one_database_let_one_win(
        self, config: GatewayConfig, control: ControlPlane, clock: FakeClock
    ) -> None:
        invited = await invitation(control)
        async with open_control_plane(config, clock) as other:
            agents = [FakeAgent(one, invited.tunnel_id) for one in (control, other) * 10]
            answers = await asyncio.gather(
                *(agent.enrol(invited.secret.reveal()) for agent in agents),
                return_exceptions=True,
            )
        assert sum(isinstance(answer, EnrolResponse) for answer in answers) == 1
        assert sum(isinstance(answer, Refusal) for answer in answers) == 19

    async def test_an_expired_code_is_refused(
        self, control: ControlPlane, clock: FakeClock
    ) -> None:
        invited = await invitation(control)
        clock.advance(900)
        with pytest.raises(Refusal) as caught:
            await FakeAgent(control, invited.tunnel_id).enrol(invited.secret.reveal())
        assert code_of(caught) == "join_code_expired"

    async def test_a_code_works_until_its_last_second(
        self, control: ControlPlane, clock: FakeClock
    ) -> None:
        invited = await invitation(control)
        clock.advance(899)
        await FakeAgent(control, invited.tunnel_id).enrol(invited.secret.reveal())

    async def test_a_made_up_secret_is_unknown(self, control: ControlPlane) -> None:
        invited = await invitation(control)
        with pytest.raises(Refusal) as caught:
            await FakeAgent(control, invited.tunnel_id).enrol("made up")
        assert code_of(caught) == "join_code_unknown"

    async def test_a_made_up_secret_costs_no_signature_and_no_writers_turn(
        self, control: ControlPlane
    ) -> None:
        invited = await invitation(control)
        request = FakeAgent(control, invited.tunnel_id).enrol_request("made up")
        # Who verified anything of it would find this first.
        request = msgspec.structs.replace(request, csr_pem="no request")
        async with control.database.writing():
            with pytest.raises(Refusal) as caught:
                await control.enrolment.enrol(request)
        assert code_of(caught) == "join_code_unknown"

    async def test_a_code_is_good_for_its_own_tunnel_only(self, control: ControlPlane) -> None:
        alices, bobs = await invitation(control, "alice"), await invitation(control, "bob")
        with pytest.raises(Refusal) as caught:
            await FakeAgent(control, bobs.tunnel_id).enrol(alices.secret.reveal())
        assert code_of(caught) == "join_code_unknown"

    async def test_what_is_refused_for_its_form_does_not_cost_the_code(
        self, control: ControlPlane
    ) -> None:
        invited = await invitation(control)
        agent = FakeAgent(control, invited.tunnel_id)
        agent.end_to_end_pem = end_to_end_pem("b" * 26)
        with pytest.raises(Refusal):
            await agent.enrol(invited.secret.reveal())
        await FakeAgent(control, invited.tunnel_id).enrol(invited.secret.reveal())

    async def test_the_code_of_a_revoked_tunnel_is_worthless(self, control: ControlPlane) -> None:
        invited = await invitation(control)
        await control.registry.revoke("alice", invited.tunnel_id)
        with pytest.raises(Refusal) as caught:
            await FakeAgent(control, invited.tunnel_id).enrol(invited.secret.reveal())
        assert code_of(caught) == "join_code_unknown"

    async def test_there_is_room_for_so_many_agents(self, control: ControlPlane) -> None:
        agent = await joined_agent(control)
        most = control.config.tunnels.max_agents
        invited = [await control.registry.invite("alice", agent.tunnel_id) for _ in range(most)]
        for invitation_ in invited[:-1]:
            await FakeAgent(control, agent.tunnel_id).enrol(invitation_.secret.reveal())
        with pytest.raises(Refusal) as caught:
            await FakeAgent(control, agent.tunnel_id).enrol(invited[-1].secret.reveal())
        assert code_of(caught) == "too_many_agents"


class TestTokens:
    async def test_a_token_is_bound_to_the_current_certificate(
        self, control: ControlPlane, clock: FakeClock
    ) -> None:
        invited = await invitation(control)
        agent = FakeAgent(control, invited.tunnel_id)
        enrolled = await agent.enrol(invited.secret.reveal())
        clock.advance(600)
        answer = await agent.token()
        assert answer.token_expires_at == clock() + 900
        claims = await verified(control, answer.token, enrolled.certificate_pem)
        assert (claims.issued_at, claims.generation) == (clock(), 1)

    async def test_an_assertion_is_taken_once(self, control: ControlPlane) -> None:
        agent = await joined_agent(control)
        request = TokenRequest(assertion=agent.assertion("/agent/v1/token"))
        await control.enrolment.token(request)
        with pytest.raises(Refusal) as caught:
            await control.enrolment.token(request)
        assert code_of(caught) == "assertion_refused"

    async def test_an_assertion_for_another_endpoint_is_refused(
        self, control: ControlPlane
    ) -> None:
        agent = await joined_agent(control)
        request = TokenRequest(assertion=agent.assertion("/agent/v1/renew"))
        with pytest.raises(Refusal, match="audience"):
            await control.enrolment.token(request)

    async def test_an_old_assertion_is_refused(
        self, control: ControlPlane, clock: FakeClock
    ) -> None:
        agent = await joined_agent(control)
        request = TokenRequest(assertion=agent.assertion("/agent/v1/token"))
        clock.advance(80)
        with pytest.raises(Refusal, match="expired"):
            await control.enrolment.token(request)

    async def test_somebody_elses_key_is_refused(self, control: ControlPlane) -> None:
        agent = await joined_agent(control)
        with pytest.raises(Refusal) as caught:
            await agent.token(new_key())
        assert code_of(caught) == "assertion_refused"

    async def test_an_agent_of_another_tunnel_gets_nothing_for_this_one(
        self, control: ControlPlane
    ) -> None:
        alices, bobs = await joined_agent(control, "alice"), await joined_agent(control, "bob")
        bobs.tunnel_id = alices.tunnel_id
        with pytest.raises(Refusal) as caught:
            await bobs.token()
        assert code_of(caught) == "tunnel_revoked"

    async def test_nonsense_is_refused(self, control: ControlPlane) -> None:
        for text in ("", "nonsense", "a.b.c", "é" * 100):
            with pytest.raises(Refusal) as caught:
                await control.enrolment.token(TokenRequest(assertion=text))
            assert code_of(caught) == "assertion_refused"

    async def test_with_an_expired_certificate_there_is_no_token_until_it_is_renewed(
        self, control: ControlPlane, clock: FakeClock
    ) -> None:
        agent = await joined_agent(control)
        clock.advance(30 * 86_400)
        with pytest.raises(Refusal) as caught:
            await agent.token()
        assert code_of(caught) == "certificate_expired"
        following = new_key()
        await agent.renew(following)
        await agent.token(following)

    async def test_a_revoked_tunnel_gets_none(self, control: ControlPlane) -> None:
        agent = await joined_agent(control)
        await control.registry.revoke("alice", agent.tunnel_id)
        for call in (agent.token(), agent.renew(new_key())):
            with pytest.raises(Refusal) as caught:
                await call
            assert code_of(caught) == "tunnel_revoked"

    async def test_a_removed_agent_gets_none_and_its_fellow_goes_on(
        self, control: ControlPlane
    ) -> None:
        agent = await joined_agent(control)
        invited = await control.registry.invite("alice", agent.tunnel_id)
        fellow = FakeAgent(control, agent.tunnel_id)
        await fellow.enrol(invited.secret.reveal())
        await control.registry.remove_agent("alice", agent.tunnel_id, agent.agent_id)
        with pytest.raises(Refusal) as caught:
            await agent.token()
        assert code_of(caught) == "tunnel_revoked"
        await fellow.token()

    async def test_no_token_is_given_out_that_is_not_written_down(
        self, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A revocation must cover every token, so a database without writes gives none."""
        agent = await joined_agent(control)

        def unwritable() -> NoReturn:
            raise DatabaseUnavailable(Fault.UNWRITABLE)

        monkeypatch.setattr(control.database, "writing", unwritable)
        with pytest.raises(Refusal) as caught:
            await agent.token()
        assert code_of(caught) == "database_not_writable"


class TestRenewing:
    async def test_a_renewal_gives_a_certificate_and_token_for_the_new_key(
        self, control: ControlPlane, clock: FakeClock
    ) -> None:
        agent = await joined_agent(control)
        clock.advance(16 * 3600)
        following = new_key()
        answer = await agent.renew(following)
        certificate = x509.load_pem_x509_certificate(answer.certificate_pem.encode())
        assert certificate.public_key() == following.public_key()
        assert answer.certificate_expires_at == clock() + 86_400
        claims = await verified(control, answer.token, answer.certificate_pem)
        assert claims.generation == 2

    async def test_renewal_from_a_replaced_key_locks_its_agent_and_raises_an_alert(
        self, control: ControlPlane, log: io.StringIO
    ) -> None:
        agent, fellow = await two_agents(control)
        copied, following = agent.key, new_key()
        await agent.renew(following)
        assert await code_of_renewal(agent, copied) == "key_replaced"
        assert "alert.agent_locked" in log.getvalue()
        assert await denied_by(control) == [agent_subject(agent.tunnel_id, agent.agent_id)]
        for call in (agent.token(following), agent.renew(new_key(), by=following)):
            with pytest.raises(Refusal) as caught:
                await call
            assert code_of(caught) == "agent_locked"
        await fellow.token()
        await fellow.renew(new_key())
        pins = await control.lookup.pinned_certificates(agent.tunnel_id)
        assert pins == (fellow.end_to_end_pem.encode(),)

    async def test_whoever_comes_second_locks_it_even_after_many_renewals(
        self, control: ControlPlane
    ) -> None:
        agent, _ = await locked_agent(control, renewals=5)
        assert await is_locked(control, agent)

    async def test_an_owner_unlocks_it_and_it_goes_on_with_a_new_certificate(
        self, control: ControlPlane
    ) -> None:
        agent, _ = await unlocked_agent(control, renewals=1)
        with pytest.raises(Refusal) as caught:
            await agent.token()
        assert code_of(caught) == "certificate_expired"
        following = new_key()
        await agent.renew(following)
        await agent.token(following)
        await control.trust.refresh()
        assert await denied_by(control) == []

    async def test_a_thief_with_an_old_key_does_not_lock_it_again(
        self, control: ControlPlane
    ) -> None:
        agent, stolen = await unlocked_agent(control, renewals=2)
        for _ in range(3):
            assert await code_of_renewal(agent, stolen) == "key_replaced"
            assert not await is_locked(control, agent)
        await renewed_often(agent, 1)

    async def test_a_key_that_was_stolen_after_that_locks_it_again(
        self, control: ControlPlane
    ) -> None:
        agent, _ = await unlocked_agent(control, renewals=2)
        stolen_later = agent.key
        await renewed_often(agent, 1)
        assert await code_of_renewal(agent, stolen_later) == "key_replaced"
        assert await is_locked(control, agent)

    async def test_a_join_code_used_on_its_host_ends_the_locked_identity(
        self, control: ControlPlane
    ) -> None:
        agent, _ = await locked_agent(control)
        again = await joined_again(control, agent, agent.key)
        await again.token()
        (only,) = await control.registry.agents_of(agent.tunnel_id)
        assert (only.agent_id, only.locked_at) == (again.agent_id, None)
        with pytest.raises(Refusal) as caught:
            await agent.token()
        assert code_of(caught) == "tunnel_revoked"

    async def test_a_copy_that_joins_again_does_not_end_the_agent_it_locked(
        self, control: ControlPlane
    ) -> None:
        """The refusal tells the copy to join again; the right host waits to be unlocked."""
        agent, copied = await locked_agent(control)
        copy = await joined_again(control, agent, copied)
        await copy.token()
        assert await is_locked(control, agent)
        await control.registry.unlock_agent("alice", agent.tunnel_id, agent.agent_id)
        await renewed_often(agent, 1)
        joined = await control.registry.agents_of(agent.tunnel_id)
        assert {it.agent_id for it in joined} == {agent.agent_id, copy.agent_id}

    async def test_a_join_code_ends_no_agent_that_is_not_locked(
        self, control: ControlPlane
    ) -> None:
        agent = await joined_agent(control)
        await joined_again(control, agent, agent.key)
        await agent.token()

    async def test_a_join_code_ends_no_agent_of_another_tunnel(self, control: ControlPlane) -> None:
        bobs, _ = await locked_agent(control, "bob")
        invited = await invitation(control)
        agent = FakeAgent(control, invited.tunnel_id)
        agent.takes_over(bobs, bobs.key)
        await agent.enrol(invited.secret.reveal())
        assert await is_locked(control, bobs)

    async def test_a_locked_agent_leaves_room_for_its_successor(
        self, control: ControlPlane
    ) -> None:
        agent, _ = await locked_agent(control)
        for _ in range(control.config.tunnels.max_agents - 1):
            fellow = FakeAgent(control, agent.tunnel_id)
            invited = await control.registry.invite("alice", agent.tunnel_id)
            await fellow.enrol(invited.secret.reveal())
        await joined_again(control, agent, agent.key)

    async def test_a_backup_made_in_the_middle_of_a_renewal_locks_nothing(
        self, control: ControlPlane
    ) -> None:
        """Such a host offers the key that it was about to take: it had both, and is no thief."""
        agent = await joined_agent(control)
        signer, offered = agent.key, new_key()
        await agent.renew(offered)
        agent.key = offered
        await renewed_often(agent, 2)
        with pytest.raises(Refusal) as caught:
            await agent.renew(offered, by=signer)
        assert code_of(caught) == "key_replaced"
        assert not await is_locked(control, agent)

    async def test_an_old_key_that_was_refused_is_shown_with_its_host(
        self, control: ControlPlane
    ) -> None:
        agent = await joined_agent(control)
        old = agent.key
        agent.instance = "run-1"
        await renewed_often(agent, 1)
        agent.hostname = "restored"
        with pytest.raises(Refusal, match="last used on host 'gpu-1'") as caught:
            await agent.token(old)
        assert code_of(caught) == "key_replaced"
        (shown,) = await control.registry.agents_of(agent.tunnel_id)
        assert (shown.old_key_host, shown.locked_at) == ("restored", None)

    async def test_a_lost_answer_may_be_asked_for_again(self, control: ControlPlane) -> None:
        agent = await joined_agent(control)
        following = new_key()
        await agent.renew(following)
        await agent.token()  # with the key it still has
        again = await agent.renew(following)
        claims = await verified(control, again.token, again.certificate_pem)
        assert claims.generation == 2
        agent.key = following
        token = (await agent.token()).token
        await verified(control, token, again.certificate_pem)
        await agent.renew(new_key())

    async def test_once_the_new_key_is_used_the_old_one_gets_no_token(
        self, control: ControlPlane
    ) -> None:
        agent = await joined_agent(control)
        following = new_key()
        await agent.renew(following)
        await agent.token(following)
        with pytest.raises(Refusal) as caught:
            await agent.token()
        assert code_of(caught) == "key_replaced"
        await agent.token(following)  # and nothing is locked by that

    async def test_each_certificate_needs_a_new_key(self, control: ControlPlane) -> None:
        agent = await joined_agent(control)
        with pytest.raises(Refusal) as caught:
            await agent.renew(agent.key)
        assert code_of(caught) == "key_reused"

    async def test_a_new_end_to_end_certificate_is_pinned_beside_the_one_before(
        self, control: ControlPlane
    ) -> None:
        agent = await joined_agent(control)
        following, pem = new_key(), end_to_end_pem(agent.tunnel_id)
        await agent.renew(following, end_to_end=pem)
        await agent.renew(following, end_to_end=pem)  # the answer was lost
        pins = await control.lookup.pinned_certificates(agent.tunnel_id)
        assert set(pins) == {pem.encode(), agent.end_to_end_pem.encode()}

        newest = end_to_end_pem(agent.tunnel_id)
        agent.key = following
        await agent.renew(new_key(), end_to_end=newest)
        pins = await control.lookup.pinned_certificates(agent.tunnel_id)
        assert set(pins) == {newest.encode(), pem.encode()}

    async def test_an_end_to_end_certificate_for_another_tunnel_is_refused(
        self, control: ControlPlane
    ) -> None:
        agent = await joined_agent(control)
        with pytest.raises(Refusal) as caught:
            await agent.renew(new_key(), end_to_end=end_to_end_pem("b" * 26))
        assert code_of(caught) == "invalid_certificate"


class TestTwoHostsWithOneState:
    async def test_both_are_told_of_each_other_by_name(
        self, control: ControlPlane, clock: FakeClock
    ) -> None:
        agent = await joined_agent(control)
        begun = int(clock())
        assert await called_by(agent, "run-1", "gpu-1") is None
        clock.advance(10)
        assert await called_by(agent, "run-2", "gpu-2") is None  # this may be a restart
        clock.advance(3)
        assert await called_by(agent, "run-1", "gpu-1") == OtherHost("gpu-2", begun + 10)
        assert await called_by(agent, "run-2", "gpu-2") == OtherHost("gpu-1", begun + 10)
        (shown,) = await control.registry.agents_of(agent.tunnel_id)
        assert {it.hostname for it in shown.runs} == {"gpu-1", "gpu-2"}

    async def test_restarts_are_not_two_hosts(
        self, control: ControlPlane, clock: FakeClock
    ) -> None:
        agent = await joined_agent(control)
        for run in range(10):
            assert await called_by(agent, f"run-{run}", "gpu-1") is None
            clock.advance(5)
            assert await called_by(agent, f"run-{run}", "gpu-1") is None

    async def test_it_is_over_when_one_of_them_has_stopped(
        self, control: ControlPlane, clock: FakeClock
    ) -> None:
        agent = await joined_agent(control)
        for run in ("run-1", "run-2", "run-1"):
            await called_by(agent, run, run)
            clock.advance(5)
        assert await called_by(agent, "run-2", "run-2") is not None
        clock.advance(control.config.tunnels.token_lifetime_s + 60)
        assert await called_by(agent, "run-1", "run-1") is None

    async def test_few_runs_are_remembered(self, control: ControlPlane, clock: FakeClock) -> None:
        agent = await joined_agent(control)
        for run in range(10):
            await called_by(agent, f"run-{run}", "gpu-1")
            clock.advance(5)
        async with control.database.reading() as connection:
            found = await instances_of(connection, agent.agent_id)
        assert [it.instance for it in found] == ["run-9", "run-8", "run-7", "run-6"]

    async def test_an_agent_that_names_no_run_is_served(self, control: ControlPlane) -> None:
        agent = await joined_agent(control)
        assert await called_by(agent, "", "") is None


async def called_by(agent: FakeAgent, instance: str, hostname: str) -> OtherHost | None:
    """What a run of the agent's program learns of another host when it fetches a token."""
    agent.instance, agent.hostname = instance, hostname
    return (await agent.token()).other_host


async def test_nothing_secret_is_logged_or_printed(control: ControlPlane, log: io.StringIO) -> None:
    invited = await invitation(control)
    agent = FakeAgent(control, invited.tunnel_id)
    answer = await agent.enrol(invited.secret.reveal())
    token = await agent.token()
    following = new_key()
    renewed = await agent.renew(following)
    with pytest.raises(Refusal):
        await agent.renew(new_key())
    shown = log.getvalue() + repr((invited, answer, token, renewed, control))
    for secret in (
        invited.secret.reveal(),
        answer.token,
        token.token,
        renewed.token,
        *answer.authentication_keys,
        "PRIVATE KEY",
    ):
        assert secret not in shown
