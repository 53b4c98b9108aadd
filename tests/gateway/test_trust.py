"""What gateways send to relays: bounded, as changes, and never older than what relays hold."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway import deletion
from byoai_gateway.config import GatewayConfig, TunnelsSection
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.database import DatabaseUnavailable
from byoai_gateway.denials import TOLERATED_CLOCKS_S, allow_agent
from byoai_gateway.known_denials import PAGE_ROWS
from byoai_gateway.refusals import Refusal
from byoai_gateway.revision import trust_revision
from byoai_gateway.schema import counters, denials
from byoai_gateway.trust import TrustSource
from byoai_gateway.trust_feeder import TrustFeeder
from byoai_shared.keys import new_key
from byoai_shared.protocol.trust import (
    Denial,
    DenialSet,
    Trust,
    TrustHeld,
    agent_subject,
    split_trust,
)
from byoai_shared.tokens import LEEWAY_S, keys_from_jwks
from support.control import FakeAgent, FakeClock, gateway_config, invitation, joined_agent

TOKEN_S = 900
DENIED_S = TOKEN_S + LEEWAY_S + TOLERATED_CLOCKS_S


def subjects(trust: Trust) -> tuple[str, ...]:
    return tuple(denial.subject for denial in trust.denials)


async def rows(control: ControlPlane) -> int:
    async with control.database.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(denials)) or 0


async def store_denials(control: ControlPlane, *made: Denial) -> None:
    """Store denials, as another gateway did."""
    async with control.database.writing() as connection:
        revision = await trust_revision(connection) + 1
        values: list[dict[str, Any]] = [
            {
                "subject": it.subject,
                "user_id": "mallory",
                "revision": revision,
                "denied_at": it.denied_at,
                "denied_until": it.until,
            }
            for it in made
        ]
        await connection.execute(insert(denials), values)
        await connection.execute(update(counters).values(value=revision))


async def another(control: ControlPlane, clock: FakeClock) -> TrustSource:
    """The trust of another gateway of the same database."""
    other = TrustSource(control.database, control.config.tokens, clock)
    await other.refresh()
    return other


async def test_it_holds_what_tokens_are_checked_with(control: ControlPlane) -> None:
    trust = await control.trust.since(0)
    assert (trust.issuer, trust.audience) == ("byoai-gateway", "byoai-relay")
    assert list(keys_from_jwks(trust.keys)) == [key.kid for key in control.signing_keys.known]
    assert all("d" not in jwk for jwk in trust.keys)
    assert trust.denials == ()


async def test_a_revocation_wakes_those_who_wait(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    before = control.trust.held
    waiting = [asyncio.create_task(control.trust.changed(before.revision)) for _ in range(3)]
    await asyncio.sleep(0)
    await control.registry.revoke("alice", agent.tunnel_id)
    assert await control.trust.refresh()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    trust = await control.trust.update(before)
    assert trust is not None
    assert subjects(trust) == (agent.tunnel_id,)
    assert trust.revision > before.revision


async def test_nothing_changed_is_not_news(control: ControlPlane) -> None:
    assert not await control.trust.refresh()
    await joined_agent(control)
    assert not await control.trust.refresh()
    assert await control.trust.update(control.trust.held) is None


# -- how long, and how many


async def test_a_revoked_tunnel_is_denied_until_its_last_token_has_expired(
    control: ControlPlane, clock: FakeClock
) -> None:
    agent = await joined_agent(control)
    clock.advance(60)
    await agent.token()
    await control.registry.revoke("alice", agent.tunnel_id)
    clock.advance(DENIED_S)
    await control.renew()
    assert subjects(await control.trust.since(0)) == (agent.tunnel_id,)
    before = control.trust.held
    clock.advance(1)
    await control.renew()
    await control.tidy()
    assert await rows(control) == 0
    change = await control.trust.update(before)
    assert change is not None
    assert change.denials == ()
    assert change.expired_before == clock()
    assert (await control.trust.since(0)).denials == ()


async def test_a_shorter_token_does_not_hide_a_longer_one(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(config, clock) as control:
        agent = await joined_agent(control)
    shorter = gateway_config(
        config.vault.key_file.parent,
        database=config.database,
        tunnels=TunnelsSection(token_lifetime_s=60),
    )
    async with open_control_plane(shorter, clock) as control:
        agent.control = control
        await agent.token()
        await control.registry.revoke("alice", agent.tunnel_id)
        await control.trust.refresh()
        (denial,) = (await control.trust.since(0)).denials
        assert denial.until == clock() + DENIED_S


async def test_a_tunnel_that_never_had_a_token_is_not_denied(control: ControlPlane) -> None:
    before = control.trust.held
    for _ in range(20):
        invited = await invitation(control)
        await control.registry.revoke("alice", invited.tunnel_id)
    assert not await control.trust.refresh()
    assert control.trust.held == before


async def test_an_agents_denial_is_one_however_often_it_renewed(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    for _ in range(8):
        key = new_key()
        await agent.renew(key)
        agent.key = key
        await agent.token()
    await control.registry.remove_agent("alice", agent.tunnel_id, agent.agent_id)
    await control.trust.refresh()
    expected = agent_subject(agent.tunnel_id, agent.agent_id)
    assert subjects(await control.trust.since(0)) == (expected,)


async def test_a_tunnels_denial_takes_the_place_of_its_agents(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    await control.registry.remove_agent("alice", agent.tunnel_id, agent.agent_id)
    await control.trust.refresh()
    held = control.trust.held
    await control.registry.revoke("alice", agent.tunnel_id)
    await control.trust.refresh()
    assert subjects(await control.trust.since(0)) == (agent.tunnel_id,)
    change = await control.trust.update(held)
    assert change is not None
    # The agent's is withdrawn by name: a relay need not ask for everything.
    assert {it.subject: it.until > 0 for it in change.denials} == {
        agent.tunnel_id: True,
        agent_subject(agent.tunnel_id, agent.agent_id): False,
    }


@pytest.fixture
async def strict(config: GatewayConfig, clock: FakeClock) -> AsyncGenerator[ControlPlane]:
    """A control plane where a user may have three live denials before adding more."""
    rules = TunnelsSection(max_revoked_per_user=3, max_per_user=5, max_agents=2)
    changed = gateway_config(config.vault.key_file.parent, database=config.database, tunnels=rules)
    async with open_control_plane(changed, clock) as opened:
        yield opened


async def test_a_user_cannot_make_denials_without_end(
    strict: ControlPlane, clock: FakeClock
) -> None:
    for _ in range(3):
        agent = await joined_agent(strict)
        await strict.registry.revoke("alice", agent.tunnel_id)
    for _ in range(5):
        with pytest.raises(Refusal) as caught:
            await joined_agent(strict)
        assert caught.value.status == 429
        assert caught.value.retry_after_s == DENIED_S
    assert await rows(strict) == 3
    # It is nobody else's trouble, and it passes.
    await joined_agent(strict, "bob")
    clock.advance(DENIED_S + 1)
    await joined_agent(strict)


async def test_one_who_has_many_denials_can_still_revoke_what_they_have(
    strict: ControlPlane,
) -> None:
    kept = [await joined_agent(strict) for _ in range(5)]
    for agent in kept[:3]:
        await strict.registry.remove_agent("alice", agent.tunnel_id, agent.agent_id)
    with pytest.raises(Refusal, match="removed so recently"):
        await strict.registry.invite("alice", kept[3].tunnel_id)
    for agent in kept:
        await strict.registry.revoke("alice", agent.tunnel_id)
    await strict.trust.refresh()
    assert set(subjects(await strict.trust.since(0))) == {agent.tunnel_id for agent in kept}


async def test_a_join_code_from_before_makes_no_further_agent(strict: ControlPlane) -> None:
    invited = await invitation(strict)
    for _ in range(3):
        agent = await joined_agent(strict)
        await strict.registry.revoke("alice", agent.tunnel_id)
    with pytest.raises(Refusal, match="removed so recently"):
        await FakeAgent(strict, invited.tunnel_id).enrol(invited.secret.reveal())


async def test_too_many_denials_become_a_moment_before_which_tokens_are_refused(
    control: ControlPlane, clock: FakeClock
) -> None:
    now = int(clock())
    source = TrustSource(control.database, control.config.tokens, clock, max_denials=100)
    await store_denials(control, *(Denial(f"t{n}", now - 1000 + n, now + 1000) for n in range(500)))
    await source.tidy()
    await source.refresh()
    await source.delete_over()
    trust = await source.since(0)
    assert len(trust.denials) == await rows(control) == 100
    assert trust.issued_after == now - 1000 + 399
    assert trust.denials[0].subject == "t400"
    # The other gateways agree, those that saw it happen and those that did not.
    await control.trust.refresh()
    assert control.trust.held == source.held == (await another(control, clock)).held


# -- many at once


class Work:
    """How much is done for denials in each turn of the event loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        self.total = 0
        self._now = 0
        apply, sweep = DenialSet.apply, DenialSet.sweep

        def applied(held: DenialSet, made: Iterable[Denial], **rules: int) -> None:
            several = list(made)
            self._add(len(several))
            apply(held, several, **rules)

        def swept(held: DenialSet, count: int) -> None:
            self._add(count)
            sweep(held, count)

        monkeypatch.setattr(DenialSet, "apply", applied)
        monkeypatch.setattr(DenialSet, "sweep", swept)

    def _add(self, count: int) -> None:
        if not self._now:
            asyncio.get_running_loop().call_soon(self._turn)
        self._now += count
        self.total += count

    def _turn(self) -> None:
        self.most, self._now = max(self.most, self._now), 0


def old(count: int, now: int) -> list[Denial]:
    """Denials of the last minutes."""
    return [Denial(f"t{n}", now - 1000 + n // 10, now + 1000) for n in range(count)]


async def test_however_many_denials_there_are_each_turn_of_the_loop_deals_with_a_page(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 7 * PAGE_ROWS
    work = Work(monkeypatch)
    await store_denials(control, *old(count, int(clock())))
    await control.trust.refresh()
    assert len((await control.trust.since(0)).denials) == count
    clock.advance(2000)
    await control.renew()
    assert (await control.trust.since(0)).denials == ()
    assert work.total >= 2 * count
    assert work.most <= PAGE_ROWS
    assert control.trust.held == (await another(control, clock)).held


async def test_what_relays_lack_is_collected_in_pages(
    control: ControlPlane, clock: FakeClock
) -> None:
    await store_denials(control, *old(4 * PAGE_ROWS, int(clock())))
    await control.trust.refresh()
    asking = asyncio.ensure_future(control.trust.since(0))
    turns = 0
    while not asking.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 4
    assert len(asking.result().denials) == 4 * PAGE_ROWS


async def test_no_more_denials_are_read_than_may_be_held(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(clock())
    source = TrustSource(control.database, control.config.tokens, clock, max_denials=100)
    await source.refresh()
    work = Work(monkeypatch)
    for part in range(5):
        made = [Denial(f"t{part}-{n}", now - 1000 + 30 * part + n, now + 1000) for n in range(100)]
        await store_denials(control, *made)
        await source.refresh()
        assert len((await source.since(0)).denials) <= 125
    assert work.total <= 5 * 2 * 125 + 10 * PAGE_ROWS
    assert source.held == (await another(control, clock)).held


async def test_of_too_many_at_once_those_that_a_new_rule_covers_are_not_read(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(clock())
    source = TrustSource(control.database, control.config.tokens, clock, max_denials=100)
    await store_denials(control, Denial("known", now - 2000, now + 1000))
    await source.refresh()
    work = Work(monkeypatch)
    await store_denials(control, *(Denial(f"t{n}", now - 1000 + n, now + 1000) for n in range(900)))
    await source.refresh()
    assert len((await source.since(0)).denials) == 100
    assert work.total <= 100 + PAGE_ROWS
    assert source.held == (await another(control, clock)).held


async def test_denials_that_are_over_are_deleted_some_at_a_time(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "BATCH", 2)
    await store_denials(control, *old(5, int(clock())))
    clock.advance(2000)
    await control.renew()
    held = control.trust.held
    # Over, and told so, before the first of them is deleted.
    assert (await control.trust.since(0)).denials == ()
    assert await rows(control) == 5
    stops = iter((False, True, True))
    await control.trust.delete_over(lambda: next(stops))
    assert await rows(control) == 3
    await control.tidy()
    assert await rows(control) == 0
    assert not await control.trust.refresh()
    assert control.trust.held == held


async def test_one_who_is_denied_again_while_old_denials_are_deleted_stays_denied(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(clock())
    await store_denials(control, Denial("again", now - 100, now - 1), Denial("over", now, now - 1))
    await control.renew()
    writing = control.database.writing

    @asynccontextmanager
    async def late() -> AsyncGenerator[AsyncConnection]:
        async with writing() as connection:  # another writer's turn comes first
            again = update(denials).where(denials.c.subject == "again")
            await connection.execute(again.values(denied_until=now + 1000))
        async with writing() as connection:
            yield connection

    with monkeypatch.context() as patched:
        patched.setattr(control.database, "writing", late)
        await control.trust.delete_over()
    async with control.database.reading() as connection:
        assert list(await connection.scalars(select(denials.c.subject))) == ["again"]


async def test_a_change_that_was_read_in_part_is_sent_to_no_one(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await joined_agent(control)
    await control.registry.revoke("alice", agent.tunnel_id)
    await control.trust.refresh()
    before = control.trust.held
    await store_denials(control, *old(3 * PAGE_ROWS, int(clock())))
    apply, count = DenialSet.apply, 0

    def applied(held: DenialSet, made: Iterable[Denial], **rules: int) -> None:
        nonlocal count
        count += 1
        if count == 3:
            refreshing.cancel()
        apply(held, made, **rules)

    with monkeypatch.context() as patched:
        patched.setattr(DenialSet, "apply", applied)
        refreshing = asyncio.ensure_future(control.trust.refresh())
        with pytest.raises(asyncio.CancelledError):
            await refreshing
    assert count == 3
    assert control.trust.held == before
    assert await control.trust.update(TrustHeld()) is None
    await control.trust.refresh()
    assert control.trust.held == (await another(control, clock)).held
    change = await control.trust.update(before)
    assert change is not None
    assert len(change.denials) == 3 * PAGE_ROWS


async def test_a_database_that_takes_no_writes_delays_no_denial(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TrustSource(control.database, control.config.tokens, clock, max_denials=3)
    await store_denials(control, *old(10, int(clock())))

    def full() -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(control.database, "writing", full)
    await source.refresh()
    assert len((await source.since(0)).denials) == 10


# -- changes, and several gateways


async def test_a_change_costs_bytes_for_itself_only(
    control: ControlPlane, clock: FakeClock
) -> None:
    now = int(clock())
    many = [Denial(f"tunnel{n:020}", now, now + 1000) for n in range(3000)]
    await store_denials(control, *many)
    await control.trust.refresh()
    held = control.trust.held
    assert len(list(split_trust(await control.trust.since(0)))) > 5
    agent = await joined_agent(control)
    await control.registry.revoke("alice", agent.tunnel_id)
    await control.trust.refresh()
    change = await control.trust.update(held)
    assert change is not None
    assert subjects(change) == (agent.tunnel_id,)
    assert len(list(split_trust(change))) == 1


async def test_gateways_of_one_database_come_to_the_same_digest(
    control: ControlPlane, clock: FakeClock
) -> None:
    other = await another(control, clock)
    agents = [await joined_agent(control) for _ in range(3)]
    for agent in agents[:2]:
        await control.registry.revoke("alice", agent.tunnel_id)
        await control.trust.refresh()
    clock.advance(DENIED_S + 1)
    await agents[2].renew(new_key())
    await control.registry.revoke("alice", agents[2].tunnel_id)
    await control.renew()
    await other.refresh()
    assert other.held == control.trust.held == (await another(control, clock)).held
    assert subjects(await other.since(0)) == (agents[2].tunnel_id,)


async def test_a_gateway_that_is_late_hears_of_a_denial_that_was_withdrawn(
    control: ControlPlane, clock: FakeClock
) -> None:
    """Else it would deny an agent that was unlocked, and relays would believe now the one."""
    now = int(clock())
    await store_denials(control, Denial("old", now, now + 10), Denial("tunnel/a", now, now + 1000))
    other = await another(control, clock)
    clock.advance(20)
    async with control.database.writing() as connection:
        await allow_agent(connection, "tunnel", "a", clock())
    await control.renew()
    await control.tidy()
    await other.refresh()
    assert other.held == control.trust.held == (await another(control, clock)).held
    assert subjects(await other.since(0)) == ()
    # It does not make a change of its own each time, and is deleted in the end.
    await control.renew()
    assert other.held == control.trust.held
    clock.advance(10_000)
    await store_denials(control, Denial("later", now, now + 9000))
    await control.renew()
    await control.tidy()
    assert await rows(control) == 0


async def test_revisions_never_fall_below_the_clock(
    control: ControlPlane, clock: FakeClock
) -> None:
    clock.advance(1_000_000)
    agent = await joined_agent(control)
    await control.registry.revoke("alice", agent.tunnel_id)
    await control.trust.refresh()
    assert control.trust.held.revision == clock() * 1000


async def test_changes_at_once_get_a_number_each(control: ControlPlane) -> None:
    agents = [await joined_agent(control) for _ in range(5)]
    before = control.trust.held.revision
    await asyncio.gather(*(control.registry.revoke("alice", it.tunnel_id) for it in agents))
    await control.trust.refresh()
    assert control.trust.held.revision >= before + 5
    assert set(subjects(await control.trust.since(0))) == {agent.tunnel_id for agent in agents}


# -- relays that hold something newer


async def test_a_restored_database_is_raised_above_what_relays_hold(
    control: ControlPlane, clock: FakeClock
) -> None:
    newer = TrustHeld(revision=control.trust.held.revision + 5000, digest="another")
    await control.trust.overtake(newer, is_first=True)
    assert control.trust.held.revision > newer.revision
    async with control.database.reading() as connection:
        assert await trust_revision(connection) == control.trust.held.revision
    assert (await another(control, clock)).held == control.trust.held


@pytest.mark.parametrize("failure", [asyncio.CancelledError, DatabaseUnavailable])
async def test_denials_outlast_a_failure_between_raising_the_revision_and_reading_all(
    control: ControlPlane,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[BaseException],
) -> None:
    agents = [await joined_agent(control) for _ in range(2)]
    for agent in agents:
        await control.registry.revoke("alice", agent.tunnel_id)
    await control.trust.refresh()
    before = set(subjects(await control.trust.since(0)))
    assert before == {agent.tunnel_id for agent in agents}
    writing = control.database.writing

    @asynccontextmanager
    async def written_then_failed() -> AsyncGenerator[AsyncConnection]:
        async with writing() as connection:
            yield connection
        raise failure

    newer = TrustHeld(revision=control.trust.held.revision + 5000, digest="another")
    with monkeypatch.context() as patched:
        patched.setattr(control.database, "writing", written_then_failed)
        with pytest.raises(failure):
            await control.trust.overtake(newer, is_first=True)
    assert set(subjects(await control.trust.since(0))) == before
    # What the database has no more is forgotten all the same, although its revision is newer.
    async with control.database.writing() as connection:
        gone = denials.delete().where(denials.c.subject == agents[0].tunnel_id)
        await connection.execute(gone)
    await control.trust.refresh()
    assert subjects(await control.trust.since(0)) == (agents[1].tunnel_id,)
    assert (await another(control, clock)).held == control.trust.held


async def test_what_another_gateway_has_just_changed_raises_nothing(
    control: ControlPlane, clock: FakeClock
) -> None:
    other = await another(control, clock)
    agent = await joined_agent(control)
    await control.registry.revoke("alice", agent.tunnel_id)
    await control.trust.refresh()
    await other.overtake(control.trust.held, is_first=True)
    assert other.held == control.trust.held


async def test_the_same_revision_with_another_digest_is_raised_on_a_new_link_only(
    control: ControlPlane,
) -> None:
    revision = control.trust.held.revision
    differs = TrustHeld(revision=revision, digest="another")
    await control.trust.overtake(differs, is_first=False)
    assert control.trust.held.revision == revision
    await control.trust.overtake(differs, is_first=True)
    assert control.trust.held.revision > revision


async def test_a_database_that_goes_back_under_a_running_gateway_is_raised(
    control: ControlPlane, clock: FakeClock
) -> None:
    agent = await joined_agent(control)
    await control.registry.revoke("alice", agent.tunnel_id)
    await control.trust.refresh()
    before = control.trust.held.revision
    async with control.database.writing() as connection:
        await connection.execute(denials.delete())
        await connection.execute(update(counters).values(value=5))
    clock.advance(2)
    assert await control.trust.refresh()
    assert control.trust.held.revision > before
    assert (await control.trust.since(0)).denials == ()


@pytest.mark.parametrize("failure", [DatabaseUnavailable(), SQLAlchemyError()])
async def test_what_a_relay_holds_is_remembered_while_the_database_is_away(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    newer = TrustHeld(revision=control.trust.held.revision + 5000, digest="another")
    sent: list[Trust] = []
    feeder = TrustFeeder(control.trust, "wss://relay")
    feeding = asyncio.ensure_future(feeder.feed(sent.append))
    asked = asyncio.Event()

    def away() -> None:
        asked.set()
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(control.database, "reading", away)
        feeder.report(newer)
        await asyncio.wait_for(asked.wait(), 5)
    await control.trust.refresh()
    async with asyncio.timeout(5):
        while not sent:  # noqa: ASYNC110 -- a list wakes no one
            await asyncio.sleep(0)
    assert sent[0].revision > newer.revision
    feeding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await feeding


async def test_raising_happens_once_a_second_at_most(
    control: ControlPlane, clock: FakeClock
) -> None:
    def stolen() -> TrustHeld:
        return TrustHeld(revision=control.trust.held.revision + 10, digest="stolen")

    await control.trust.overtake(stolen(), is_first=False)
    raised = control.trust.held.revision
    await control.trust.overtake(stolen(), is_first=False)
    assert control.trust.held.revision == raised
    clock.advance(1)
    await control.trust.refresh()
    assert control.trust.held.revision > raised


async def test_a_relay_cannot_drive_the_revision_beyond_all_bounds(
    control: ControlPlane, clock: FakeClock
) -> None:
    before = control.trust.held
    impossible = TrustHeld(revision=int(clock() * 1000) + 3 * 86_400_000, digest="stolen")
    await control.trust.overtake(impossible, is_first=True)
    assert control.trust.held == before
