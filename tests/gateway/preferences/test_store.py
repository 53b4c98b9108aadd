import asyncio
from collections.abc import Sequence
from typing import NoReturn

import pytest
from sqlalchemy import select, update

from byoai_gateway.config import GatewayConfig
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.database import DatabaseUnavailable
from byoai_gateway.key_file import add_first_key
from byoai_gateway.preferences.preferences import Attention, Changes, Preferences, Setting
from byoai_gateway.preferences.rows import place_of
from byoai_gateway.refusals import Refusal
from byoai_gateway.router.upstream import ProviderName
from byoai_gateway.schema import audit_log, secrets
from byoai_gateway.vault import KeysUnavailable, Place, Sealed, Vault
from byoai_shared.secret import Secret
from support.control import FakeClock, invitation

KEY = Secret("sk-or-v1-canary-0123456789")
OTHER_KEY = Secret("a-local-canary-9876543210")
OPENROUTER = Changes(plain={Setting.PROVIDER: "openrouter"}, keys={Setting.OPENROUTER_KEY: KEY})


async def swap(control: ControlPlane, one: tuple[str, Setting], two: tuple[str, Setting]) -> None:
    """Exchange what is sealed in two rows, as somebody who can write to the database might."""
    places = [place_of(*it) for it in (one, two)]
    async with control.database.writing() as connection:
        rows = [
            (
                await connection.execute(
                    select(secrets.c.sealed).where(
                        secrets.c.owner == place.owner, secrets.c.field == place.field
                    )
                )
            ).scalar_one()
            for place in places
        ]
        for place, sealed in zip(places, reversed(rows), strict=True):
            await connection.execute(
                update(secrets)
                .where(secrets.c.owner == place.owner, secrets.c.field == place.field)
                .values(sealed=sealed)
            )


async def test_who_never_saved_has_the_default_and_nothing_else(control: ControlPlane) -> None:
    assert await control.preferences.of("alice") == Preferences()
    assert (await control.preferences.show("alice")).updated_at is None


async def test_what_is_saved_counts_at_once_for_this_user_only(
    control: ControlPlane, clock: FakeClock
) -> None:
    heard: list[str] = []
    control.preferences.on_changed = heard.append
    assert await control.preferences.of("alice") == Preferences()
    saved = await control.preferences.save("alice", OPENROUTER)
    now = await control.preferences.of("alice")
    assert now == saved.preferences
    assert (now.provider, now.openrouter_key) == (ProviderName.OPENROUTER, KEY)
    assert saved.updated_at == clock()
    assert await control.preferences.of("bob") == Preferences()
    assert heard == ["alice"]


async def test_what_a_save_does_not_name_stays(control: ControlPlane) -> None:
    await control.preferences.save("alice", OPENROUTER)
    await control.preferences.save("alice", Changes(plain={Setting.OPENROUTER_MODEL: "a/b"}))
    await control.preferences.save("alice", Changes(plain={Setting.FALLBACK: True}))
    now = await control.preferences.of("alice")
    assert (now.openrouter_key, now.openrouter_model, now.fallback_to_default) == (
        KEY,
        "a/b",
        True,
    )
    await control.preferences.save(
        "alice",
        Changes(plain={Setting.OPENROUTER_MODEL: None}, keys={Setting.OPENROUTER_KEY: None}),
    )
    now = await control.preferences.of("alice")
    assert (now.provider, now.openrouter_key, now.openrouter_model) == (
        ProviderName.OPENROUTER,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("before", "changes", "setting"),
    [
        ([], Changes(plain={Setting.PROVIDER: "openrouter"}), Setting.OPENROUTER_KEY),
        (
            [OPENROUTER],
            Changes(plain={Setting.PROVIDER: "openrouter"}, keys={Setting.OPENROUTER_KEY: None}),
            Setting.OPENROUTER_KEY,
        ),
    ],
)
async def test_what_contradicts_itself_is_refused_and_nothing_of_it_saved(
    control: ControlPlane, before: Sequence[Changes], changes: Changes, setting: Setting
) -> None:
    for earlier in before:
        await control.preferences.save("alice", earlier)
    shown = await control.preferences.show("alice")
    with pytest.raises(Refusal) as refused:
        await control.preferences.save("alice", changes)
    assert list(refused.value.fields) == [setting]
    assert await control.preferences.show("alice") == shown


async def test_only_an_own_tunnel_that_is_not_revoked_may_be_chosen(
    control: ControlPlane,
) -> None:
    own = (await invitation(control, "alice")).tunnel_id
    theirs = (await invitation(control, "bob")).tunnel_id
    await control.preferences.save("alice", Changes(plain={Setting.TUNNEL: own}))
    assert (await control.preferences.of("alice")).tunnel_id == own
    await control.registry.revoke("alice", own)
    for tunnel_id in (own, theirs, "nothing"):
        with pytest.raises(Refusal) as refused:
            await control.preferences.save("alice", Changes(plain={Setting.TUNNEL: tunnel_id}))
        assert (refused.value.status, refused.value.code) == (404, "tunnel_not_found")
        assert (refused.value.param, list(refused.value.fields)) == ("tunnelId", ["tunnelId"])


async def test_a_setting_that_stopped_working_keeps_since_when_and_tells_the_newest_reason(
    control: ControlPlane, clock: FakeClock
) -> None:
    store = control.preferences
    await store.save("alice", OPENROUTER)
    await store.note_attention(
        "alice", Setting.OPENROUTER_KEY, "key_refused", await store.of("alice")
    )
    since = int(clock())
    clock.advance(60)
    await store.note_attention(
        "alice", Setting.OPENROUTER_KEY, "credits_spent", await store.of("alice")
    )
    noted = Attention(Setting.OPENROUTER_KEY, "credits_spent", since)
    assert (await store.show("alice")).attention == (noted,)
    assert (await store.of("alice")).attention == {Setting.OPENROUTER_KEY: "credits_spent"}
    await store.save("alice", Changes(plain={Setting.FALLBACK: True}))
    assert (await store.show("alice")).attention == (noted,)
    await store.save("alice", Changes(keys={Setting.OPENROUTER_KEY: KEY}))
    assert (await store.show("alice")).attention == ()


async def test_a_setting_that_works_again_needs_no_attention(control: ControlPlane) -> None:
    store = control.preferences
    await store.save("alice", OPENROUTER)
    await store.note_attention(
        "alice", Setting.OPENROUTER_KEY, "credits_spent", await store.of("alice")
    )
    await store.clear_attention("alice", (Setting.OPENROUTER_KEY,), await store.of("alice"))
    assert (await store.of("alice")).attention == {}
    assert (await store.show("alice")).attention == ()


async def test_a_database_that_is_away_fails_no_answer_for_a_note(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = control.preferences
    await store.save("alice", OPENROUTER)
    await store.note_attention(
        "alice", Setting.OPENROUTER_KEY, "credits_spent", await store.of("alice")
    )
    await store.of("alice")

    def away() -> NoReturn:
        raise DatabaseUnavailable

    monkeypatch.setattr(control.database, "writing", away)
    await store.note_attention(
        "alice", Setting.OPENROUTER_MODEL, "model_not_found", await store.of("alice")
    )
    await store.clear_attention("alice", (Setting.OPENROUTER_KEY,), await store.of("alice"))
    assert list((await store.of("alice")).attention) == [Setting.OPENROUTER_KEY]


async def test_keys_that_cannot_be_asked_for_fail_no_answer_for_a_note(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = control.preferences
    await store.save("alice", OPENROUTER)
    used = await store.of("alice")

    async def away(*_: object) -> NoReturn:
        raise KeysUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(control.secrets, "open", away)
        await store.note_attention("alice", Setting.OPENROUTER_KEY, "key_refused", used)
    assert (await store.show("alice")).attention == ()


async def test_keys_that_changed_rows_do_not_open_and_are_to_be_entered_again(
    control: ControlPlane,
) -> None:
    store = control.preferences
    both = Changes(keys={Setting.OPENROUTER_KEY: KEY, Setting.SELF_HOSTED_KEY: OTHER_KEY})
    await store.save("alice", both)
    await store.save("bob", both)
    await swap(control, ("alice", Setting.OPENROUTER_KEY), ("bob", Setting.OPENROUTER_KEY))
    await swap(control, ("alice", Setting.SELF_HOSTED_KEY), ("bob", Setting.OPENROUTER_KEY))
    now = (await store.show("alice")).preferences
    assert now.needs_reentry == {Setting.OPENROUTER_KEY, Setting.SELF_HOSTED_KEY}
    assert (now.openrouter_key, now.self_hosted_key) == (None, None)
    # It is there all the same: choosing the provider that it is for is not refused.
    await store.save("alice", Changes(plain={Setting.PROVIDER: "openrouter"}))
    await store.save("alice", Changes(keys={Setting.OPENROUTER_KEY: KEY}))
    now = (await store.show("alice")).preferences
    assert now.openrouter_key == KEY
    assert now.needs_reentry == {Setting.SELF_HOSTED_KEY}


async def test_every_save_is_audited_by_field_and_never_by_value(
    control: ControlPlane, clock: FakeClock
) -> None:
    await control.preferences.save("alice", OPENROUTER)
    with pytest.raises(Refusal):
        await control.preferences.save("alice", Changes(plain={Setting.TUNNEL: "nothing"}))
    async with control.database.reading() as connection:
        (entry,) = (await connection.execute(select(audit_log))).all()
    assert (entry.at, entry.user_id, entry.action) == (clock(), "alice", "preferences.saved")
    assert entry.fields == ["aiProvider", "openRouterApiKey"]
    assert "canary" not in repr(entry)


async def test_an_id_of_any_length_has_a_place_of_its_own(control: ControlPlane) -> None:
    longest = "a" * 255
    await control.preferences.save(longest, OPENROUTER)
    assert (await control.preferences.of(longest)).openrouter_key == KEY
    assert (await control.preferences.of("a" * 254)).openrouter_key is None


async def test_keys_are_sealed_and_opened_while_others_write(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds the key-encryption keys may take seconds; others must not wait for it."""
    store = control.preferences
    both = Changes(keys={Setting.OPENROUTER_KEY: KEY, Setting.SELF_HOSTED_KEY: OTHER_KEY})
    await store.save("alice", both)
    used = await store.of("alice")
    asked: list[str] = []
    opens, seals = Vault.open, Vault.seal

    async def opening(vault: Vault, place: Place, sealed: Sealed) -> bytes:
        asked.append(f"open {place.field}")
        async with asyncio.timeout(50), control.database.writing():
            return await opens(vault, place, sealed)

    async def sealing(vault: Vault, place: Place, secret: bytes) -> Sealed:
        asked.append(f"seal {place.field}")
        async with asyncio.timeout(50), control.database.writing():
            return await seals(vault, place, secret)

    monkeypatch.setattr(Vault, "open", opening)
    monkeypatch.setattr(Vault, "seal", sealing)
    saved = await store.save("alice", Changes(keys={Setting.OPENROUTER_KEY: OTHER_KEY}))
    assert saved.preferences.openrouter_key == OTHER_KEY
    assert saved.preferences.self_hosted_key == OTHER_KEY
    assert asked == ["open selfHostedAuthKey", "seal openRouterApiKey"]
    await store.note_attention("alice", Setting.SELF_HOSTED_KEY, "key_refused", used)
    await store.clear_attention("alice", [Setting.SELF_HOSTED_KEY], used)
    asked.clear()
    await store.save("alice", both)
    assert asked == ["seal openRouterApiKey", "seal selfHostedAuthKey"]


async def test_nothing_is_noted_of_a_key_that_is_saved_at_the_same_moment(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = control.preferences
    await store.save("alice", OPENROUTER)
    used = await store.of("alice")
    opens = Vault.open

    async def opening(vault: Vault, place: Place, sealed: Sealed) -> bytes:
        with monkeypatch.context() as patch:
            patch.setattr(Vault, "open", opens)
            await store.save("alice", Changes(keys={Setting.OPENROUTER_KEY: OTHER_KEY}))
            return await opens(vault, place, sealed)

    monkeypatch.setattr(Vault, "open", opening)
    await store.note_attention("alice", Setting.OPENROUTER_KEY, "key_refused", used)
    monkeypatch.setattr(Vault, "open", opens)
    assert (await store.show("alice")).attention == ()


async def test_what_is_saved_during_a_rotation_is_sealed_with_the_new_key(
    control: ControlPlane, config: GatewayConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seals = Vault.seal
    old = control.secrets

    async def sealing(vault: Vault, place: Place, secret: bytes) -> Sealed:
        sealed = await seals(vault, place, secret)
        monkeypatch.setattr(Vault, "seal", seals)
        add_first_key(config.vault.key_file)
        await old.rewrap(control.database)
        return sealed

    monkeypatch.setattr(Vault, "seal", sealing)
    await control.preferences.save("alice", OPENROUTER)
    async with control.database.reading() as connection:
        key_ids = set(await connection.scalars(select(secrets.c.key_id)))
    assert len(key_ids) == 1
    assert (await control.preferences.of("alice")).openrouter_key == KEY
