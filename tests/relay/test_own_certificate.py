"""The relay's own certificate: who may renew it, where it is kept, and how it ends."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from byoai_relay.config import IdentityFiles
from byoai_relay.own_certificate import WARNED_AGAIN_S, OwnCertificate
from byoai_shared import logs
from byoai_shared.errors import ConfigError
from byoai_shared.identity import GatewayIdentity, Identity, RelayIdentity
from byoai_shared.keys import key_from_pem, new_key
from byoai_shared.private_files import NotPrivate
from support.authority import Authority
from support.links import GATEWAY, RELAY, certificates
from support.logged import Logged
from support.relays import Clock, config_in

DAY_S = 86_400.0
TWO_DAYS = timedelta(days=2)
POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="no mode bits on Windows")


@pytest.fixture
def logged() -> Logged:
    """What is logged from here on."""
    log = Logged()
    logs.configure(form="json", stream=log.stream)
    return log


@pytest.fixture
def files(tmp_path: Path) -> IdentityFiles:
    return config_in(tmp_path).identity


def renewed(
    identity: Identity = RELAY,
    authority: Authority | None = None,
    *,
    lifetime: timedelta = TWO_DAYS,
) -> str:
    """A new certificate for the relay's key."""
    made = certificates()
    key = key_from_pem(made.relay.key_pem)
    authority = authority or made.services
    certificate = authority.certificate(identity, key, lifetime=lifetime)
    return certificate.public_bytes(Encoding.PEM).decode()


def due() -> Clock:
    """A clock at which the relay's certificate is to be renewed and has not expired."""
    return Clock(time.time() + 0.6 * DAY_S)


def test_a_renewed_certificate_is_used_and_kept(files: IdentityFiles, logged: Logged) -> None:
    own = OwnCertificate(files, due())
    pem = renewed()
    before = own.life
    own.take(pem)
    assert own.life.expires_at > before.expires_at
    assert files.certificate.read_text() == pem
    assert len(logged.lines("certificate.renewed")) == 1
    own.look()
    assert not logged.lines("certificate.reloaded"), "what it wrote itself is nothing new"
    assert OwnCertificate(files, due()).life == own.life


def test_a_certificate_that_is_young_is_not_replaced(files: IdentityFiles) -> None:
    own = OwnCertificate(files)
    before = own.life
    own.take(renewed())
    assert own.life == before


def test_a_long_lived_certificate_of_an_earlier_version_is_replaced_by_a_short_one(
    files: IdentityFiles,
) -> None:
    key = key_from_pem(certificates().relay.key_pem)
    long = certificates().services.certificate(RELAY, key, lifetime=timedelta(days=397))
    files.certificate.write_bytes(long.public_bytes(Encoding.PEM))
    clock = Clock(time.time() + 4 * DAY_S)
    own = OwnCertificate(files, clock)
    own.take(renewed(lifetime=timedelta(days=11)))
    assert own.life.expires_at < clock.now + 7.1 * DAY_S


@pytest.mark.parametrize("case", ["relay", "role", "key", "ca", "same", "expired", "garbage"])
def test_a_certificate_that_is_not_its_own_is_refused(
    files: IdentityFiles, case: str, logged: Logged
) -> None:
    own = OwnCertificate(files, due())
    before = own.life
    services = certificates().services
    pems = {
        "relay": renewed(RelayIdentity("relay-2")),
        "role": renewed(GatewayIdentity(RELAY.name)),
        "key": services.certificate(RELAY, new_key(), lifetime=TWO_DAYS)
        .public_bytes(Encoding.PEM)
        .decode(),
        "ca": renewed(authority=Authority("services")),
        "same": certificates().relay.certificate_pem.decode(),
        "expired": renewed(lifetime=timedelta(hours=1)),
        "garbage": "é",
    }
    own.take(pems[case])
    assert own.life == before
    assert len(logged.lines("certificate.refused")) == 1
    assert files.certificate.read_bytes() == certificates().relay.certificate_pem


def test_a_certificate_that_cannot_be_saved_is_used_all_the_same(
    files: IdentityFiles, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnCertificate(files, due())
    before = own.life

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(30, "Read-only file system", str(target), None, str(self))

    monkeypatch.setattr(Path, "replace", refuse)
    own.take(renewed())
    assert own.life.expires_at > before.expires_at
    (said,) = logged.lines("certificate.not_saved")
    assert said["reason"] == "Read-only file system"
    assert "until the relay stops" in said["next"]


def test_new_files_are_the_way_back(files: IdentityFiles) -> None:
    made = certificates().of(RELAY)
    own = OwnCertificate(files, due())
    files.key.write_bytes(made.key_pem)
    files.certificate.write_bytes(made.certificate_pem)
    os.utime(files.certificate, (1.0, 1.0))
    own.look()
    assert own._key_pem == made.key_pem
    assert own._leaf == x509.load_pem_x509_certificate(made.certificate_pem)


def test_an_expired_certificate_stops_the_start_and_says_the_way_back(
    files: IdentityFiles,
) -> None:
    with pytest.raises(ConfigError, match=r"expired on .*issue-relay-certificate relay-1"):
        OwnCertificate(files, Clock(time.time() + 2 * DAY_S))


def test_a_certificate_that_nobody_renews_is_warned_about_hourly(
    files: IdentityFiles, logged: Logged
) -> None:
    clock = due()
    own = OwnCertificate(files, clock)
    own.look()
    assert not logged.lines("certificate.not_renewed")
    clock.now += 0.2 * DAY_S
    own.look()
    own.look()
    assert len(logged.lines("certificate.not_renewed")) == 1
    clock.now += WARNED_AGAIN_S
    own.look()
    assert len(logged.lines("certificate.not_renewed")) == 2


@POSIX_ONLY
@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660])
def test_a_key_that_others_can_read_is_refused(files: IdentityFiles, mode: int) -> None:
    files.key.chmod(mode)
    with pytest.raises(NotPrivate, match="chmod 600"):
        OwnCertificate(files)


@POSIX_ONLY
def test_a_directory_that_every_account_writes_is_refused(files: IdentityFiles) -> None:
    files.key.parent.chmod(0o777)
    with pytest.raises(NotPrivate, match="chmod o-w"):
        OwnCertificate(files)


@POSIX_ONLY
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root gives files away")
def test_a_key_is_read_from_a_kubernetes_volume(files: IdentityFiles) -> None:
    files.key.parent.chmod(0o1777)
    assert OwnCertificate(files).name == "relay-1"


@POSIX_ONLY
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root gives files away")
def test_a_directory_of_another_account_is_refused(files: IdentityFiles) -> None:
    os.chown(files.key.parent, 4242, 4242)
    with pytest.raises(NotPrivate, match=r"user id 4242.*chown -R 0"):
        OwnCertificate(files)


def test_a_certificate_of_a_gateway_is_not_a_relays(files: IdentityFiles) -> None:
    made = certificates().of(GATEWAY)
    files.key.write_bytes(made.key_pem)
    files.certificate.write_bytes(made.certificate_pem)
    with pytest.raises(ConfigError, match="not a relay"):
        OwnCertificate(files)
