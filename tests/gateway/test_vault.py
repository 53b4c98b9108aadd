import asyncio
import secrets
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_gateway.config import VaultSection
from byoai_gateway.key_ring import KeyRing, create_ring, load_ring, parse_keys
from byoai_gateway.vault import (
    KeysUnavailable,
    Place,
    Sealed,
    Vault,
    VaultError,
    VaultKeyMissing,
)
from byoai_shared.errors import ConfigError
from byoai_shared.secret import Secret

OLD = "old=" + "A" * 43
NEW = "new=" + "B" * 42 + "A"
PLACE = Place("tunnel/one", "authentication-key/1")


def vault(*lines: str) -> Vault:
    return Vault(parse_keys("\n".join(lines), "test"))


@given(st.binary(max_size=5000))
async def test_what_was_sealed_opens(secret: bytes) -> None:
    one = vault(OLD)
    assert await one.open(PLACE, await one.seal(PLACE, secret)) == secret


async def test_the_same_secret_is_sealed_differently_each_time() -> None:
    one = vault(OLD)
    assert (await one.seal(PLACE, b"same")).content != (await one.seal(PLACE, b"same")).content


async def test_the_secret_does_not_stand_in_the_record() -> None:
    secret = b"a secret of some length"
    assert secret not in (await vault(OLD).seal(PLACE, secret)).content


@pytest.mark.parametrize(
    "other",
    [
        Place("tunnel/two", PLACE.field),
        Place(PLACE.owner, "authentication-key/2"),
        # The same characters, cut elsewhere.
        Place("tunnel/onea", "uthentication-key/1"),
    ],
)
async def test_a_record_moved_to_another_row_does_not_open(other: Place) -> None:
    one = vault(OLD)
    with pytest.raises(VaultError, match="moved from another row"):
        await one.open(other, await one.seal(PLACE, b"secret"))


async def test_a_record_changed_in_any_byte_does_not_open() -> None:
    one = vault(OLD)
    sealed = await one.seal(PLACE, b"secret")
    for at in range(len(sealed.content)):
        changed = bytearray(sealed.content)
        changed[at] ^= 1
        with pytest.raises(VaultError):
            await one.open(PLACE, Sealed(sealed.key_id, bytes(changed)))


async def test_a_record_cut_short_does_not_open() -> None:
    one = vault(OLD)
    sealed = await one.seal(PLACE, b"secret")
    for length in range(len(sealed.content)):
        with pytest.raises(VaultError):
            await one.open(PLACE, Sealed(sealed.key_id, sealed.content[:length]))


async def test_the_first_key_seals_and_all_open() -> None:
    sealed_before = await vault(OLD).seal(PLACE, b"secret")
    both = vault(NEW, OLD)
    assert await both.open(PLACE, sealed_before) == b"secret"
    assert (await both.seal(PLACE, b"secret")).key_id == "new"


async def test_a_missing_key_is_named() -> None:
    sealed = await vault(OLD).seal(PLACE, b"secret")
    with pytest.raises(VaultKeyMissing, match="key old,"):
        await vault(NEW).open(PLACE, sealed)


async def test_a_record_that_claims_another_key_does_not_open() -> None:
    both = vault(NEW, OLD)
    sealed = await both.seal(PLACE, b"secret")
    with pytest.raises(VaultError):
        await both.open(PLACE, Sealed("old", sealed.content))


def test_keys_are_read_past_comments_and_empty_lines() -> None:
    ring = parse_keys(f"# keys\n\n{NEW}\n  {OLD}  \n", "test")
    assert ring.current == "new"
    assert set(ring.keys) == {"new", "old"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no key-encryption key"),
        ("# nothing", "no key-encryption key"),
        ("old", "line 1"),
        ("old=short", "line 1"),
        (f"{OLD}\nnew=!!!!", "line 2"),
        ("=" + "A" * 43, "line 1"),
        (f"{OLD}\n{OLD}", "twice"),
    ],
)
def test_what_is_no_key_is_refused_by_its_line(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_keys(text, "test")


def test_a_refused_line_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_keys("old=almost-a-key", "test")
    assert "almost" not in str(caught.value)


def test_keys_do_not_show_in_a_repr() -> None:
    key = b"k" * 32
    assert "kkk" not in repr(KeyRing("id", {"id": key}))


def test_a_new_key_file_is_for_its_owner_only_and_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    ring = create_ring(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_ring(VaultSection(key_file=path)) == ring


def test_an_existing_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    path.write_text(OLD)
    with pytest.raises(ConfigError, match="cannot make"):
        create_ring(path)
    assert path.read_text() == OLD


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    create_ring(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_ring(VaultSection(key_file=path))


def test_keys_from_the_environment_need_no_file(tmp_path: Path) -> None:
    ring = load_ring(VaultSection(key_file=tmp_path / "absent", keys=Secret(OLD)))
    assert ring is not None
    assert ring.current == "old"
    assert load_ring(VaultSection(key_file=tmp_path / "absent")) is None


class FakeKms:
    """A key service: it never gives its key out, wraps at length, and can be away."""

    current = "arn:example/1"

    def __init__(self) -> None:
        self._wrapped: dict[bytes, tuple[bytes, bytes]] = {}
        self.raises: BaseException | None = None
        self.hangs = False

    def knows(self, key_id: str) -> bool:
        return key_id == self.current

    async def wrap(self, key_id: str, data_key: bytes, context: bytes) -> bytes:
        await self._reached()
        wrapped = secrets.token_bytes(184)
        self._wrapped[wrapped] = (data_key, context)
        return wrapped

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        await self._reached()
        data_key, given = self._wrapped.get(wrapped, (b"", b""))
        if not data_key or given != context:
            raise ValueError("InvalidCiphertextException: a canary")
        return data_key

    async def _reached(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.raises is not None:
            raise self.raises


async def test_a_key_service_may_wrap_instead_of_a_ring() -> None:
    kms = FakeKms()
    one = Vault(kms)
    sealed = await one.seal(PLACE, b"secret")
    assert sealed.key_id == kms.current
    assert await one.open(PLACE, sealed) == b"secret"
    assert one.missing_keys({kms.current, "old"}) == {"old"}
    with pytest.raises(VaultError, match="moved from another row") as refused:
        await one.open(Place("tunnel/two", PLACE.field), sealed)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("failure", [ConnectionRefusedError("a canary"), TimeoutError(), None])
async def test_a_key_service_that_is_away_is_no_damage(
    failure: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byoai_gateway.vault._WRAPPER_S", 0.01)
    kms = FakeKms()
    one = Vault(kms)
    sealed = await one.seal(PLACE, b"secret")
    kms.raises, kms.hangs = failure, failure is None
    for asked in (one.open(PLACE, sealed), one.seal(PLACE, b"other")):
        with pytest.raises(KeysUnavailable) as refused:
            await asked
        assert refused.value.status == 503
        assert not isinstance(refused.value, VaultError), "the record is sound"
        assert "canary" not in str(refused.value)
    kms.raises, kms.hangs = None, False
    assert await one.open(PLACE, sealed) == b"secret"


async def test_a_record_of_the_first_version_opens() -> None:
    one = vault(OLD)
    sealed = await one.seal(PLACE, b"secret")
    first = b"\x01" + sealed.content[3:]
    assert await one.open(PLACE, Sealed(sealed.key_id, first)) == b"secret"
