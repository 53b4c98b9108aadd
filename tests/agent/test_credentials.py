import asyncio
import contextlib
import io
import platform
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio
from rich.console import Console

from byoai_agent import credentials as credentials_module
from byoai_agent.control import Gateway, GatewayError, GatewayRefused, GatewayUnreachable
from byoai_agent.credentials import Credentials, retry_delay_s
from byoai_agent.enrol import enrol
from byoai_agent.reporter import Reporter
from byoai_agent.schedule import Deadline, read_clocks
from byoai_agent.state import StateDirectory, StateError
from byoai_shared.backoff import Backoff
from byoai_shared.enrolment import OtherHost
from byoai_shared.identity import new_tunnel_id
from byoai_shared.joincode import JoinCode
from byoai_shared.keys import key_to_pem, new_key
from byoai_shared.secret import Secret
from support.disks import FailingDisk
from support.fake_gateway import FakeGateway, Refusing, running


class House:
    """A joined agent's credentials and its gateway."""

    def __init__(self, gateway: FakeGateway, state: StateDirectory) -> None:
        self.gateway = gateway
        self.state = state
        self.heard: list[str] = []

    def credentials(self) -> Credentials:
        """What a fresh start of the agent has."""
        one = Credentials(self.state, Gateway(self.gateway.url), Reporter())
        one.listeners.token = lambda: self.heard.append("token")
        one.listeners.certificate = lambda: self.heard.append("certificate")
        one.listeners.told = lambda: self.heard.append("told")
        return one


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    async with running(FakeGateway()) as gateway:
        state = StateDirectory(tmp_path / "state")
        code = JoinCode(gateway.url, new_tunnel_id(), Secret("s" * 43))
        joined = await enrol(code, Gateway(gateway.url), None, ())
        state.save(joined.membership, joined.link, joined.end_to_end)
        yield House(gateway, state)


async def test_a_start_gets_a_token_and_the_keys(house: House) -> None:
    one = house.credentials()
    await one.start()
    assert one.token.reveal() == "token-2"
    assert [key.reveal() for key in one.authentication_keys] == ["authentication-key"]
    assert house.heard == ["told", "token"]
    assert house.gateway.calls[-1] == "/agent/v1/token"


async def test_no_token_and_no_key_is_written_to_disk(house: House) -> None:
    one = house.credentials()
    await one.start()
    for file in house.state.path.iterdir():
        content = file.read_bytes()
        assert b"token-" not in content
        assert b"authentication-key" not in content
        assert b"s" * 43 not in content


async def test_new_relays_are_remembered(house: House) -> None:
    house.gateway.relays = ["wss://a:1", "wss://b:1"]
    await house.credentials().start()
    assert house.state.membership().relays == ("wss://a:1", "wss://b:1")


async def test_a_renewal_whose_answer_was_lost_is_repeated_at_the_start(house: House) -> None:
    await renewed_at_start(house)
    assert house.gateway.calls[-2:] == ["/agent/v1/renew", "/agent/v1/token"]


async def with_old_certificate(house: House) -> Credentials:
    """Past two thirds of its life, as in a backup."""
    await renewed_at_start(house)  # one of 20 s that began 5 minutes ago
    return house.credentials()


async def test_old_state_asks_for_a_token_before_it_renews(house: House) -> None:
    """A backup is told `key_replaced`; a renewal from its key would lock the agent."""
    one = await with_old_certificate(house)
    renewals = len(house.gateway.renewed)
    house.gateway.refusals = [Refusing(403, "key_replaced", "its state is an old copy")]
    with pytest.raises(GatewayRefused) as refused:
        await one.start()
    assert refused.value.is_fatal
    assert house.gateway.calls[-1] == "/agent/v1/token"
    assert len(house.gateway.renewed) == renewals


async def test_a_certificate_past_two_thirds_is_renewed_right_after_the_first_token(
    house: House,
) -> None:
    one = await with_old_certificate(house)
    renewals = len(house.gateway.renewed)
    house.gateway.certificate_life = timedelta(days=1)
    await one.start()
    renewed = asyncio.Event()
    one.listeners.certificate = renewed.set
    running_ = asyncio.create_task(one.run())
    async with asyncio.timeout(50):
        await renewed.wait()
    await ended(running_)
    assert len(house.gateway.renewed) == renewals + 1


async def test_another_host_with_the_same_state_is_told_once_by_name(house: House) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=1000)
    one = Credentials(house.state, Gateway(house.gateway.url), Reporter(console))
    house.gateway.other_host = OtherHost("gpu-2", 1_700_000_000)
    await one.start()
    await one.start()
    (sentence,) = stream.getvalue().splitlines()
    assert "another host uses this agent's identity: gpu-2, since 20" in sentence
    assert "byoai-agent join CODE --replace" in sentence
    asked = house.gateway.asked[-1]
    assert (asked.instance, asked.hostname) == (one.instance, platform.node()[:255])
    house.gateway.other_host = None
    await one.start()
    assert one.other_host is None


async def test_a_locked_agent_waits_for_its_owner(house: House) -> None:
    one = house.credentials()
    house.gateway.refusals = [Refusing(403, "agent_locked", "this agent is locked")]
    with pytest.raises(GatewayRefused) as refused:
        await one.start()
    assert not refused.value.is_fatal
    assert one.refusal == "this agent is locked"
    await one.start()
    assert one.refusal == ""


def test_a_gateway_that_returns_is_found_soon_and_one_that_sheds_load_is_heeded() -> None:
    for _ in range(20):
        backoff = Backoff(base_s=1.0, cap_s=60.0)
        delays = [retry_delay_s(backoff, GatewayUnreachable("away")) for _ in range(9)]
        assert max(delays) <= 10.0
    asked = GatewayRefused(503, "overloaded", "", None, retry_after_s=45.0)
    assert retry_delay_s(Backoff(), asked) == 45.0
    for_ever = GatewayRefused(503, "overloaded", "", None, retry_after_s=1e9)
    assert retry_delay_s(Backoff(), for_ever) == 300.0


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_gateway_behind_a_proxy_that_returns_is_found_soon(status: int) -> None:
    """The proxy answers for it while it is away."""
    away = GatewayRefused(status, "", "try again later", None)
    for _ in range(20):
        backoff = Backoff(base_s=1.0, cap_s=60.0)
        assert max(retry_delay_s(backoff, away) for _ in range(9)) <= 10.0
    asked = GatewayRefused(status, "", "try again later", None, retry_after_s=45.0)
    assert retry_delay_s(Backoff(), asked) == 45.0


def test_a_gateway_that_refuses_is_asked_less_and_less_often() -> None:
    refused = GatewayRefused(400, "key_reused", "", None)
    backoff = Backoff(base_s=1.0, cap_s=60.0, rng=Random(7))
    assert max(retry_delay_s(backoff, refused) for _ in range(20)) > 10.0


async def renewed_at_start(house: House) -> Credentials:
    """With a certificate whose life is nearly over."""
    house.gateway.certificate_life = timedelta(seconds=20)  # begun 5 minutes ago, as all are
    one = house.credentials()
    one_life = one.certificate_expires_at()
    house.state.save_next_key(_new_key_pem())
    await one.start()
    assert one.certificate_expires_at() != one_life
    return one


def _new_key_pem() -> bytes:
    return key_to_pem(new_key())


async def test_a_renewal_uses_a_new_key_and_keeps_it_safe_first(house: House) -> None:
    old = house.state.link()
    one = await renewed_at_start(house)
    assert house.state.link() == one.link
    assert one.link.key_pem != old.key_pem
    assert house.state.next_key() is None
    assert house.heard[:2] == ["told", "certificate"]


async def test_a_lost_answer_is_asked_for_again_with_the_same_key(house: House) -> None:
    """The gateway may have taken the new key; another one would look like a clone."""
    house.state.save_next_key(_new_key_pem())
    offered = house.state.next_key()
    house.gateway.lose_answers = 1
    with pytest.raises(GatewayUnreachable):
        await house.credentials().start()
    assert house.state.next_key() == offered
    after_crash = house.credentials()
    await after_crash.start()
    assert after_crash.link.key_pem == offered
    assert len({request.csr_pem for request in house.gateway.renewed}) >= 1
    await after_crash.start()  # the new key is the one the gateway knows


async def test_a_crash_after_the_takeover_leaves_nothing_to_offer(house: House) -> None:
    """The pair was written, the offered key not yet removed."""
    house.state.save_next_key(house.state.link().key_pem)
    one = house.credentials()
    assert house.state.next_key() is None
    await one.start()
    assert house.gateway.renewed == []


async def test_a_key_the_gateway_had_before_is_given_up(house: House) -> None:
    house.state.save_next_key(_new_key_pem())
    house.gateway.refusals = [Refusing(400, "key_reused")]
    with pytest.raises(GatewayRefused):
        await house.credentials().start()
    assert house.state.next_key() is None


async def test_an_expired_certificate_is_renewed_on_the_gateways_word(house: House) -> None:
    house.gateway.refusals = [Refusing(403, "certificate_expired")]
    await house.credentials().start()
    assert house.gateway.calls[-3:] == ["/agent/v1/token", "/agent/v1/renew", "/agent/v1/token"]


async def test_a_wrong_clock_is_corrected_by_the_gateways(house: House) -> None:
    house.gateway.clock_offset_s = 3600.0
    one = house.credentials()
    await one.start()
    assert one.token.reveal()
    assert house.gateway.calls[-2:] == ["/agent/v1/token", "/agent/v1/token"]
    await one.start()
    assert house.gateway.calls[-3:].count("/agent/v1/token") == 3


async def test_without_the_gateways_clock_it_is_told_as_it_is(house: House) -> None:
    house.gateway.clock_offset_s = 3600.0
    house.gateway.forget_date = True
    with pytest.raises(GatewayRefused) as refused:
        await house.credentials().start()
    assert not refused.value.is_fatal


@pytest.mark.parametrize("code", ["tunnel_revoked", "key_replaced"])
async def test_what_only_a_person_can_mend_ends_the_agent(house: House, code: str) -> None:
    one = house.credentials()
    await one.start()
    house.gateway.refusals = [Refusing(403, code, "the tunnel was revoked")]
    one.want_token()
    with pytest.raises(GatewayRefused, match="was revoked") as refused:
        async with asyncio.timeout(50):
            await one.run()
    assert refused.value.is_fatal


async def test_a_passing_fault_is_tried_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials_module, "Backoff", QuickBackoff)
    one = house.credentials()
    await one.start()
    house.gateway.refusals = [Refusing(503, "unavailable")] * 3
    got = asyncio.Event()
    one.listeners.token = got.set
    one.want_token()
    running_ = asyncio.create_task(one.run())
    async with asyncio.timeout(50):
        await got.wait()
    await ended(running_)
    assert one.token.reveal() == "token-3"


class QuickBackoff:
    def __init__(self, **_: float) -> None:
        pass

    def next_delay_s(self, _cap_s: float | None = None) -> float:
        return 0.001


async def ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_tokens_and_certificates_follow_their_schedules(house: House) -> None:
    """With lives of seconds, and no sleeping in the test: the agent itself says when."""
    house.gateway.token_life_s = 2
    one = house.credentials()
    refreshed, renewed = asyncio.Event(), asyncio.Event()
    await one.start()
    first = one.token.reveal()
    house.gateway.certificate_life = timedelta(seconds=3)
    house.state.save_next_key(_new_key_pem())
    await one.start()
    one.listeners.token = refreshed.set
    one.listeners.certificate = renewed.set
    running_ = asyncio.create_task(one.run())
    async with asyncio.timeout(50):
        await refreshed.wait()
        await renewed.wait()
    await ended(running_)
    assert one.token.reveal() != first


async def test_an_old_end_to_end_certificate_is_replaced_with_the_renewal(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials_module, "END_TO_END_LIFE", timedelta(seconds=1))
    short = credentials_module.new_end_to_end(house.state.membership().tunnel_id)
    house.state.save_end_to_end(short)
    monkeypatch.undo()
    one = house.credentials()
    one._certificate_due = Deadline(read_clocks(), 0.0)
    renewed = asyncio.Event()
    one.listeners.certificate = renewed.set
    await one.start()
    one._certificate_due = Deadline(read_clocks(), 0.0)
    one.want_token()
    running_ = asyncio.create_task(one.run())
    async with asyncio.timeout(50):
        await renewed.wait()
    await ended(running_)
    (sent,) = house.gateway.renewed
    assert sent.end_to_end_certificate_pem == house.state.end_to_end().certificate_pem.decode()
    assert house.state.end_to_end() == one.end_to_end != short


# -- disks that take nothing


async def test_a_renewal_whose_key_cannot_be_saved_waits(house: House, disk: FailingDisk) -> None:
    """Nothing is offered, the certificate stays in use, and tokens go on."""
    one = house.credentials()
    old = one.link
    one._certificate_due = Deadline(read_clocks(), 0.0)
    disk.fail()
    await one._renew_or_postpone()
    assert house.gateway.renewed == []
    assert one.link == old
    assert 0 < one._certificate_due_s() <= 60
    await one._refresh_token()
    assert one.token.reveal()
    disk.mend()
    await one._renew_or_postpone()
    assert house.state.link() == one.link != old


async def test_a_start_on_a_full_disk_goes_on_with_the_old_certificate(
    house: House, disk: FailingDisk
) -> None:
    house.gateway.certificate_life = timedelta(seconds=60)  # begun 5 minutes ago: renewal is due
    await renewed(house)
    disk.fail()
    one = house.credentials()
    before = len(house.gateway.renewed)
    await one.start()
    assert one.token.reveal()
    assert len(house.gateway.renewed) == before
    assert one._certificate_due_s() <= 60


async def renewed(house: House) -> None:
    """The agent has a certificate of the life that the gateway now gives."""
    one = house.credentials()
    await one._renew()


async def test_an_expired_certificate_on_a_full_disk_is_worth_another_start(
    house: House, disk: FailingDisk
) -> None:
    """An agent that does not run yet offers no key that it could forget."""
    disk.fail()
    house.gateway.refusals = [Refusing(403, "certificate_expired")]
    with pytest.raises(StateError, match="No space left") as failed:
        await house.credentials().start()
    assert not failed.value.is_fatal
    assert house.gateway.renewed == []


async def test_a_certificate_about_to_end_is_renewed_from_memory(
    house: House, disk: FailingDisk
) -> None:
    house.gateway.certificate_life = timedelta(seconds=20)  # of 320 s in all
    await renewed(house)
    one = house.credentials()
    old = house.state.link()
    disk.fail()
    house.gateway.certificate_life = timedelta(days=1)
    await one._renew_or_postpone()
    assert one.link != old
    assert house.state.link() == old
    disk.mend()
    await one._keeper.report(b"{}")
    assert house.state.link() == one.link


async def test_a_new_certificate_that_cannot_be_saved_is_used_and_saved_later(
    house: House, disk: FailingDisk
) -> None:
    one = house.credentials()
    old = house.state.link()
    disk.fail(after=1)  # the new key is saved, its certificate is not
    await one._renew()
    assert one.link != old
    assert house.state.link() == old
    assert "certificate" in house.heard
    crashed = house.credentials()
    await crashed.start()  # the same key again, as after a lost answer
    assert crashed.link.key_pem == one.link.key_pem
    disk.mend()
    await crashed._keeper.report(b"{}")
    assert house.state.link() == crashed.link


async def test_a_lost_answer_repeats_the_end_to_end_key_too(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway may have taken it; with the old one no stream could be opened."""
    monkeypatch.setattr(credentials_module, "END_TO_END_LIFE", timedelta(seconds=1))
    house.state.save_end_to_end(credentials_module.new_end_to_end(new_tunnel_id()))
    monkeypatch.undo()
    house.gateway.lose_answers = 1
    with pytest.raises(GatewayUnreachable):
        await house.credentials()._renew()
    after_crash = house.credentials()
    await after_crash.start()
    first, second = house.gateway.renewed
    assert first.end_to_end_certificate_pem == second.end_to_end_certificate_pem is not None
    assert house.state.end_to_end() == after_crash.end_to_end
    assert after_crash.end_to_end.certificate_pem.decode() == second.end_to_end_certificate_pem


async def test_errors_do_not_carry_assertions(house: House) -> None:
    house.gateway.refusals = [Refusing(500, "internal_error", "oops")]
    with pytest.raises(GatewayError) as failed:
        await house.credentials().start()
    assert "eyJ" not in str(failed.value)
