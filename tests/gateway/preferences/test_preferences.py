import pytest

from byoai_gateway.preferences.preferences import (
    Changes,
    Preferences,
    Setting,
    conflicts,
    fingerprint,
    last_four,
    own_name,
)
from byoai_gateway.router.upstream import ProviderName
from byoai_shared.secret import Secret

KEY = Secret("sk-or-v1-canary-0123456789abcd")
URL = "https://models.example.com/v1"
TO_OPENROUTER = Changes(plain={Setting.PROVIDER: "openrouter"})
WITHOUT_KEY = Changes(keys={Setting.OPENROUTER_KEY: None})


@pytest.mark.parametrize(
    ("now", "changes", "found"),
    [
        (Preferences(), Changes(), []),
        (Preferences(), TO_OPENROUTER, [Setting.OPENROUTER_KEY]),
        (Preferences(openrouter_key=KEY), TO_OPENROUTER, []),
        (Preferences(needs_reentry=frozenset({"openRouterApiKey"})), TO_OPENROUTER, []),
        # A key can always be taken back, whatever needs it.
        (Preferences(ProviderName.OPENROUTER, openrouter_key=KEY), WITHOUT_KEY, []),
        (Preferences(tunnel_id="t"), Changes(plain={Setting.TUNNEL: "u"}), []),
        (
            Preferences(tunnel_id="t"),
            Changes(plain={Setting.SELF_HOSTED_URL: URL}),
            [Setting.SELF_HOSTED_URL],
        ),
        (
            Preferences(self_hosted_url=URL),
            Changes(plain={Setting.TUNNEL: "t"}),
            [Setting.TUNNEL],
        ),
        (
            Preferences(self_hosted_url=URL),
            Changes(plain={Setting.TUNNEL: "t", Setting.SELF_HOSTED_URL: None}),
            [],
        ),
        (
            Preferences(),
            Changes(plain={Setting.TUNNEL: "t", Setting.SELF_HOSTED_URL: URL}),
            [Setting.TUNNEL],
        ),
    ],
)
def test_what_contradicts_itself(now: Preferences, changes: Changes, found: list[Setting]) -> None:
    assert list(conflicts(now, changes)) == found


@pytest.mark.parametrize(
    ("changes", "asks"),
    [
        (Changes(), False),
        (Changes(plain={Setting.PROVIDER: "self-hosted"}), True),
        (Changes(plain={Setting.TUNNEL: "saved", Setting.SELF_HOSTED_URL: None}), False),
        (Changes(plain={Setting.SELF_HOSTED_URL: "saved"}), True),
        (TO_OPENROUTER, False),
        (Changes(plain={Setting.TUNNEL: "t"}), True),
        (Changes(plain={Setting.TUNNEL: None, Setting.SELF_HOSTED_URL: None}), False),
        (Changes(keys={Setting.SELF_HOSTED_KEY: KEY}), True),
        (Changes(keys={Setting.SELF_HOSTED_KEY: None}), False),
    ],
)
def test_what_needs_the_plan(changes: Changes, *, asks: bool) -> None:
    assert changes.asks_for_self_hosting(Preferences(tunnel_id="saved")) is asks


def test_a_fingerprint_names_a_key_of_one_user() -> None:
    assert fingerprint("alice", KEY) == fingerprint("alice", Secret(KEY.reveal()))
    assert fingerprint("alice", KEY) != fingerprint("bob", KEY)
    assert fingerprint("alice", KEY) != fingerprint("alice", Secret("another-key-of-hers"))


def test_a_short_key_has_no_fingerprint_by_which_it_could_be_guessed() -> None:
    assert fingerprint("alice", Secret("k" * 15)) is None
    assert fingerprint("alice", Secret("k" * 16)) is not None
    assert own_name("alice", Secret("one")) != own_name("alice", Secret("two"))


def test_the_end_of_a_short_key_would_be_too_much_of_it() -> None:
    assert last_four(KEY) == "abcd"
    assert last_four(Secret("k" * 15)) is None


def test_nothing_shows_a_key() -> None:
    changes = Changes(keys={Setting.OPENROUTER_KEY: KEY})
    assert "canary" not in repr((changes, Preferences(openrouter_key=KEY)))
