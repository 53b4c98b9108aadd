import pytest

from byoai_gateway.preferences.preferences import (
    Changes,
    Preferences,
    Setting,
    conflicts,
    fingerprint,
    last_four,
    own_name,
    without_old_key,
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


@pytest.mark.parametrize(
    ("before", "after", "is_removed"),
    [
        (URL, "https://models.example.com/v2", False),
        (URL, "https://models.example.com:443", False),
        (URL, "https://MODELS.example.com./v1", False),
        (URL, URL, False),
        (URL, "https://models.example.com:8443/v1", True),
        (URL, "https://models.example.com.attacker.net/v1", True),
        (URL, "https://models.example.org/v1", True),
        (URL, "https://93.184.216.34/v1", True),
        ("https://10.0.0.5:8443/v1", "https://10.0.0.5:8443/", False),
        ("https://10.0.0.5:8443/v1", "https://10.0.0.6:8443/v1", True),
        # Without an address in between, the key would follow in two steps.
        (URL, None, True),
        (None, URL, True),
        ("http://written-by-an-older-version/", URL, True),
        (None, None, False),
    ],
)
def test_a_key_stays_with_its_server(
    before: str | None, after: str | None, *, is_removed: bool
) -> None:
    now = Preferences(self_hosted_url=before, self_hosted_key=KEY)
    changes = Changes(plain={Setting.SELF_HOSTED_URL: after})
    written = without_old_key(now, changes)
    assert (Setting.SELF_HOSTED_KEY in written) is is_removed
    assert written.keys == ({Setting.SELF_HOSTED_KEY: None} if is_removed else {})
    assert written.plain == changes.plain


def test_only_a_key_that_the_changes_do_not_name_is_removed_with_its_address() -> None:
    other = "https://models.example.org/v1"
    now = Preferences(self_hosted_url=URL, self_hosted_key=KEY)
    with_new_key = Changes(
        plain={Setting.SELF_HOSTED_URL: other}, keys={Setting.SELF_HOSTED_KEY: Secret("new")}
    )
    without_address = Changes(plain={Setting.FALLBACK: True})
    for changes in (with_new_key, without_address):
        assert without_old_key(now, changes) is changes
    to_other = Changes(plain={Setting.SELF_HOSTED_URL: other})
    assert without_old_key(Preferences(self_hosted_url=URL), to_other) is to_other
    # One that does not open now may open again later.
    lost = Preferences(self_hosted_url=URL, needs_reentry=frozenset({Setting.SELF_HOSTED_KEY}))
    assert without_old_key(lost, to_other).emptied == (Setting.SELF_HOSTED_KEY,)
