import pytest

from byoai_gateway.provider_config import RouterSection
from byoai_gateway.router.classify import failure_of_status
from byoai_gateway.router.ledger import Asked, Ledger
from byoai_gateway.router.upstream import ProviderName
from support.control import FakeClock
from support.logged import Logged


class NoFlags:
    """Nothing is noted at a user's settings."""

    async def noticed(self, setting: str, code: str, model: str | None) -> None:
        assert setting
        assert code
        assert model is None

    def worked(self, asked: Asked) -> None:
        del asked


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_the_operator_reads_once_a_minute_which_setting_is_wrong(
    status: int, clock: FakeClock, logged: Logged
) -> None:
    ledger = Ledger(RouterSection(), clock)
    for provider in ProviderName:
        asked = Asked("alice", provider, NoFlags())
        for _ in range(3):
            ledger.failed(asked, failure_of_status(provider, status, (), b"{}"))
    await ledger.settle()
    (said,) = logged.lines("provider.misconfigured")
    assert said["setting"] == "default_provider.key"
    clock.advance(61)
    asked = Asked("bob", ProviderName.DEFAULT, NoFlags())
    ledger.failed(asked, failure_of_status(ProviderName.DEFAULT, status, (), b"{}"))
    assert len(logged.lines("provider.misconfigured")) == 2
