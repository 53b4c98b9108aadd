import pytest

from byoai_gateway.link_keys import LinkKey, Renewal, Standing, renewal, standing


def key(generation: int, *, confirmed: bool = True) -> LinkKey:
    return LinkKey(generation, b"key %d" % generation, "thumbprint", 1000, confirmed)


CONFIRMED = [key(3), key(2), key(1)]
UNCONFIRMED = [key(3, confirmed=False), key(2), key(1)]


@pytest.mark.parametrize(
    ("keys", "generation", "expected"),
    [
        (CONFIRMED, 3, Standing.CURRENT),
        (CONFIRMED, 2, Standing.REPLACED),
        (CONFIRMED, 1, Standing.REPLACED),
        (UNCONFIRMED, 3, Standing.CURRENT),
        (UNCONFIRMED, 2, Standing.PREVIOUS),
        (UNCONFIRMED, 1, Standing.REPLACED),
    ],
)
def test_what_a_key_may_do(keys: list[LinkKey], generation: int, expected: Standing) -> None:
    assert standing(key(generation), keys) is expected


@pytest.mark.parametrize("keys", [CONFIRMED, UNCONFIRMED])
@pytest.mark.parametrize(
    ("signer", "requested", "expected"),
    [
        (3, b"new", Renewal.NEW_KEY),
        (3, b"key 3", Renewal.KEY_REUSED),
        (3, b"key 1", Renewal.KEY_REUSED),
        (2, b"key 3", Renewal.SAME_AGAIN),
        (2, b"new", Renewal.CLONE),
        (2, b"key 2", Renewal.CLONE),
        (1, b"key 3", Renewal.CLONE),
        (1, b"key 2", Renewal.OLD_STATE),
        (1, b"new", Renewal.CLONE),
    ],
)
def test_what_a_renewal_is(
    keys: list[LinkKey], signer: int, requested: bytes, expected: Renewal
) -> None:
    assert renewal(key(signer), requested, keys) is expected
