import pytest

from byoai_gateway.join_limit import JoinLimit
from byoai_gateway.refusals import Refusal


async def test_the_sixth_try_of_an_address_must_wait() -> None:
    limit = JoinLimit(5)
    for _ in range(5):
        await limit.count("198.51.100.7")
    with pytest.raises(Refusal) as caught:
        await limit.count("198.51.100.7")
    assert caught.value.status == 429
    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 60


async def test_other_addresses_are_not_held_up() -> None:
    limit = JoinLimit(1)
    await limit.count("198.51.100.7")
    await limit.count("198.51.100.8")
