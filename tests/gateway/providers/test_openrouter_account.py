"""Keys are checked where it proves something, and nobody waits for a list of models twice."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from byoai_gateway.provider_config import OpenRouterSection, RouterSection
from byoai_gateway.providers import openrouter_account
from byoai_gateway.providers.openrouter import OpenRouter
from byoai_gateway.providers.openrouter_account import (
    MAX_STALE_S,
    RETRY_S,
    ModelList,
    OpenRouterAccounts,
    open_openrouter_accounts,
)
from byoai_gateway.providers.outbound import Outbound
from byoai_gateway.router.failures import AttemptFailed, FailureKind
from byoai_shared.secret import Secret
from support.control import FakeClock
from support.openrouter import (
    FAULTS,
    GENEROUS,
    KEY,
    MANAGEMENT_KEY,
    FakeOpenRouter,
    Reply,
    model,
    serving_openrouter,
)

FRESH_S = 300.0
USERS = Secret(KEY)
LIST = "/models/user"


@pytest.fixture
async def service() -> AsyncGenerator[FakeOpenRouter]:
    async with serving_openrouter() as running:
        yield running


@pytest.fixture
async def accounts(service: FakeOpenRouter, clock: FakeClock) -> AsyncGenerator[OpenRouterAccounts]:
    outbound = Outbound(5)
    asked = OpenRouter(
        OpenRouterSection(base_url=service.url), RouterSection(), "https://app.example", outbound
    )
    async with open_openrouter_accounts(asked, FRESH_S, clock) as opened:
        yield opened
    outbound.close()


def names(found: ModelList) -> list[str]:
    return [it.id for it in found.models]


async def settled(accounts: OpenRouterAccounts) -> None:
    """Let what is fetched in the background end."""
    async with asyncio.timeout(50):
        await accounts.settled()


class TestKeys:
    async def test_a_good_keys_limits_are_shown(self, accounts: OpenRouterAccounts) -> None:
        limits = await accounts.check_key(USERS)
        assert (limits.limit, limits.limit_remaining, limits.limit_reset) == (100, 74.5, "monthly")
        assert limits.usage == 25.5
        assert not limits.is_spent

    async def test_a_spent_key_is_good_and_said_to_be_spent(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter
    ) -> None:
        service.keys[KEY] = {**GENEROUS, "limit_remaining": 0}
        assert (await accounts.check_key(USERS)).is_spent

    async def test_a_key_without_a_limit_is_not_spent(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter
    ) -> None:
        service.keys[KEY] = {"label": "x", "limit": None, "limit_remaining": None, "usage": 1}
        assert not (await accounts.check_key(USERS)).is_spent

    @pytest.mark.parametrize("name", ["is_management_key", "is_provisioning_key"])
    async def test_management_keys_are_refused_by_either_name(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter, name: str
    ) -> None:
        service.keys[MANAGEMENT_KEY] = {**GENEROUS, name: True}
        with pytest.raises(AttemptFailed, match="management key") as caught:
            await accounts.check_key(Secret(MANAGEMENT_KEY))
        assert caught.value.failure.kind is FailureKind.KEY_REFUSED
        assert caught.value.failure.error.code == "management_key"

    async def test_a_bad_key_is_refused_though_models_are_public(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter
    ) -> None:
        with pytest.raises(AttemptFailed) as caught:
            await accounts.check_key(Secret("sk-or-v1-of-nobody"))
        assert caught.value.failure.kind is FailureKind.KEY_REFUSED
        assert "of-nobody" not in str(caught.value)
        assert service.paths() == ["/key"]

    @pytest.mark.parametrize("body", ["<html>", {"data": "text"}, [], {"data": {"limit": "much"}}])
    async def test_an_odd_answer_is_malformed(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter, body: object
    ) -> None:
        service.instead("/key", Reply(200, body))
        with pytest.raises(AttemptFailed) as caught:
            await accounts.check_key(USERS)
        assert caught.value.failure.kind is FailureKind.MALFORMED


class TestLists:
    async def test_it_is_the_users_own_with_all_its_pages(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter
    ) -> None:
        service.pages = [[model("a/1")], [model("a/2")], [model("a/3")]]
        found = await accounts.models(USERS)
        assert names(found) == ["a/1", "a/2", "a/3"]
        assert not found.is_public
        assert service.paths() == [LIST, f"{LIST}?page=1", f"{LIST}?page=2"]
        assert {it.headers["authorization"] for it in service.asked} == {f"Bearer {KEY}"}

    async def test_an_entry_says_what_a_page_of_settings_needs(
        self, accounts: OpenRouterAccounts
    ) -> None:
        first = (await accounts.models(USERS)).models[0]
        assert (first.id, first.context_length) == ("acme/small", 128000)
        assert first.prompt_price == "0.0000007"
        assert first.output_modalities == ("text",)

    async def test_one_odd_entry_does_not_hide_the_others(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter
    ) -> None:
        odd: list[dict[str, object]] = [{"name": "no id"}, {"id": 7}, {"id": "a/bare"}]
        service.pages = [[*odd, model("a/whole", context_length=1.5, pricing={"prompt": 0.5})]]
        found = await accounts.models(USERS)
        assert names(found) == ["a/bare", "a/whole"]
        assert found.models[1].context_length is None
        assert found.models[1].prompt_price == "0.5"

    async def test_pages_that_lead_in_a_circle_end(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter
    ) -> None:
        again = {"data": [model("a/1")], "links": {"next": "?page=9"}}
        service.instead(LIST, Reply(200, again), Reply(200, again))
        assert names(await accounts.models(USERS)) == ["a/1", "a/1"]

    @pytest.mark.parametrize("fault", ["forbidden", "no_endpoints", "internal", "rate_limit"])
    async def test_the_public_list_stands_in(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter, fault: str
    ) -> None:
        service.instead(LIST, FAULTS[fault])
        found = await accounts.models(USERS)
        assert found.is_public
        assert "acme/for-nobody" in names(found)
        assert "authorization" not in service.asked[-1].headers

    async def test_it_does_not_stand_in_for_a_refused_key(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter
    ) -> None:
        with pytest.raises(AttemptFailed) as caught:
            await accounts.models(Secret("sk-or-v1-of-nobody"))
        assert caught.value.failure.kind is FailureKind.KEY_REFUSED
        assert service.paths() == [LIST]


class TestKeeping:
    async def test_a_fresh_list_is_not_fetched_again(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter, clock: FakeClock
    ) -> None:
        first = await accounts.models(USERS)
        clock.advance(FRESH_S - 1)
        assert await accounts.models(USERS) is first
        assert len(service.asked) == 1

    async def test_an_aged_list_is_given_while_a_new_one_is_fetched(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter, clock: FakeClock
    ) -> None:
        await accounts.models(USERS)
        service.pages = [[model("a/new")]]
        service.gate.clear()
        clock.advance(FRESH_S)
        for _ in range(3):
            assert names(await accounts.models(USERS)) == ["acme/small", "acme/large"]
        service.gate.set()
        await settled(accounts)
        assert names(await accounts.models(USERS)) == ["a/new"]
        assert len(service.asked) == 2

    async def test_many_at_once_cause_one_fetch(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter
    ) -> None:
        found = await asyncio.gather(*(accounts.models(USERS) for _ in range(20)))
        assert len(service.asked) == 1
        assert all(it is found[0] for it in found)

    async def test_one_who_leaves_does_not_end_the_fetch_for_others(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter
    ) -> None:
        service.gate.clear()
        leaver = asyncio.create_task(accounts.models(USERS))
        stayer = asyncio.create_task(accounts.models(USERS))
        async with asyncio.timeout(50):
            await service.arrived.wait()
        leaver.cancel()
        service.gate.set()
        assert names(await stayer) == ["acme/small", "acme/large"]

    async def test_a_list_is_shown_to_no_other_key(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter
    ) -> None:
        await accounts.models(USERS)
        service.keys["sk-or-v1-other"] = GENEROUS
        service.pages = [[model("a/others")]]
        assert names(await accounts.models(Secret("sk-or-v1-other"))) == ["a/others"]
        assert names(await accounts.models(USERS)) == ["acme/small", "acme/large"]

    async def test_equal_entries_of_two_keys_are_kept_once(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter
    ) -> None:
        service.keys["sk-or-v1-other"] = GENEROUS
        ours = await accounts.models(USERS)
        others = await accounts.models(Secret("sk-or-v1-other"))
        assert ours.models[0] is others.models[0]

    async def test_what_is_known_outlives_an_outage_and_is_not_hammered(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter, clock: FakeClock
    ) -> None:
        first = await accounts.models(USERS)
        clock.advance(FRESH_S)
        service.instead(LIST, FAULTS["internal"])
        service.instead("/models", FAULTS["internal"])
        await accounts.models(USERS)
        await settled(accounts)
        asked = len(service.asked)
        assert await accounts.models(USERS) is first
        await settled(accounts)
        assert len(service.asked) == asked
        clock.advance(RETRY_S)
        await accounts.models(USERS)
        await settled(accounts)
        assert len(service.asked) == asked + 1

    async def test_a_list_of_yesterday_is_not_shown(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter, clock: FakeClock
    ) -> None:
        await accounts.models(USERS)
        clock.advance(MAX_STALE_S + 1)
        service.pages = [[model("a/new")]]
        assert names(await accounts.models(USERS)) == ["a/new"]

    async def test_a_key_that_is_refused_loses_its_list(
        self, accounts: OpenRouterAccounts, service: FakeOpenRouter, clock: FakeClock
    ) -> None:
        await accounts.models(USERS)
        del service.keys[KEY]
        clock.advance(FRESH_S)
        await accounts.models(USERS)
        await settled(accounts)
        with pytest.raises(AttemptFailed) as caught:
            await accounts.models(USERS)
        assert caught.value.failure.kind is FailureKind.KEY_REFUSED

    async def test_lists_are_bounded(
        self,
        accounts: OpenRouterAccounts,
        service: FakeOpenRouter,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(openrouter_account, "MAX_LISTS", 1)
        service.keys["sk-or-v1-other"] = GENEROUS
        await accounts.models(USERS)
        await accounts.models(Secret("sk-or-v1-other"))
        await accounts.models(USERS)
        assert len(service.asked) == 3

    async def test_fetches_are_bounded(
        self, accounts: OpenRouterAccounts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openrouter_account, "MAX_REFRESHES", 0)
        with pytest.raises(AttemptFailed) as caught:
            await accounts.models(USERS)
        assert caught.value.failure.status == 503

    async def test_the_first_wait_has_an_end(
        self,
        accounts: OpenRouterAccounts,
        service: FakeOpenRouter,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(openrouter_account, "FIRST_WAIT_S", 0.01)
        service.gate.clear()
        with pytest.raises(AttemptFailed) as caught:
            await accounts.models(USERS)
        assert caught.value.failure.status == 504
