"""What one tunnel may use up of a relay."""

import gc

import pytest

from byoai_relay import accounts as accounts_module
from byoai_relay.accounts import MAX_WAIT_S, AccountLimits, Accounts, TunnelAccount

LIMITS = AccountLimits(
    early_resets_burst=3, early_resets_per_s=1.0, refuse_s=10.0, work_per_s=1000.0
)


def test_streams_are_refused_from_the_first_early_reset_that_is_not_covered() -> None:
    account = TunnelAccount(LIMITS, now=100.0)
    for _ in range(3):
        account.charge_early_reset(100.0)
    assert not account.refuses_streams(100.0)
    account.charge_early_reset(100.0)
    assert account.refuses_streams(100.0)
    assert account.refuses_streams(109.9)
    assert not account.refuses_streams(110.0)


def test_early_resets_within_the_rate_are_never_too_many() -> None:
    account = TunnelAccount(LIMITS, now=0.0)
    for second in range(1000):
        account.charge_early_reset(float(second))
    assert not account.refuses_streams(999.0)


def test_work_is_paid_by_waiting() -> None:
    account = TunnelAccount(LIMITS, now=0.0)
    assert account.charge_work(2000, 0.0) == 0.0  # two seconds' worth may come at once
    assert account.charge_work(500, 0.0) == 0.5
    assert account.charge_work(0, 0.3) == pytest.approx(0.2)
    assert account.charge_work(0, 0.5) == 0.0


def test_work_within_the_rate_is_free_for_ever() -> None:
    account = TunnelAccount(LIMITS, now=0.0)
    assert all(account.charge_work(100, at / 10) == 0.0 for at in range(1, 1000))


def test_no_wait_is_longer_than_a_link_may_be_silent() -> None:
    account = TunnelAccount(LIMITS, now=0.0)
    assert account.charge_work(10**9, 0.0) == MAX_WAIT_S < 25.0


def test_an_account_is_kept_while_it_is_charged_and_for_a_time_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accounts_module, "MAX_REMEMBERED", 10)
    accounts = Accounts(LIMITS)
    held = accounts.of("held", 0.0)
    gone = id(accounts.of("gone", 0.0))
    assert id(accounts.of("gone", 0.0)) == gone  # although nothing else holds it
    for number in range(1000):
        accounts.of(f"t{number}", 0.0)
    gc.collect()
    assert accounts.of("held", 0.0) is held
    assert accounts.known("gone") is None
    assert len(accounts) <= 11
