"""Who may own and read private keys and the directories around them."""

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from byoai_shared.private_files import (
    NotPrivate,
    check_directory,
    directory_fault,
    key_fault,
    own_directory,
    read_key_file,
    remove_leftovers,
    replace_file,
    replace_files,
    write_new_file,
)

POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="no mode bits on Windows")

ROOT, US, OTHER = 0, 1000, 2000
KEY = Path("state/key.pem")
FOLDER = Path("state")


def found(kind: int, mode: int, owner: int) -> os.stat_result:
    return os.stat_result((kind | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "owner", "user"),
    [
        (0o600, US, US),
        (0o400, US, US),
        (0o440, ROOT, US),
        (0o640, ROOT, US),
        (0o600, ROOT, ROOT),
        (0o600, OTHER, ROOT),
    ],
    ids=["ours", "read-only", "fsGroup", "root-and-group", "root", "administrator"],
)
def test_a_key_that_others_cannot_read_is_used(mode: int, owner: int, user: int) -> None:
    assert key_fault(KEY, found(stat.S_IFREG, mode, owner), user) == ""


@pytest.mark.parametrize("owner", [US, ROOT])
@pytest.mark.parametrize("mode", [0o604, 0o644, 0o660, 0o602, 0o620])
def test_a_key_that_others_can_read_or_write_is_refused(mode: int, owner: int) -> None:
    told = key_fault(KEY, found(stat.S_IFREG, mode, owner), US)
    assert f"(mode {mode:04o})" in told
    assert f"chmod {'600' if owner == US else '640'} {KEY}" in told


@pytest.mark.parametrize("user", [US, ROOT])
def test_our_own_key_may_not_be_readable_by_a_group(user: int) -> None:
    assert "chmod 600" in key_fault(KEY, found(stat.S_IFREG, 0o640, user), user)


def test_a_key_of_another_account_is_refused() -> None:
    told = key_fault(KEY, found(stat.S_IFREG, 0o600, OTHER), US)
    assert "user id 2000" in told
    assert f"chown 1000 {KEY}" in told


@pytest.mark.parametrize("owner", [US, ROOT])
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o775, 0o2775])
def test_a_directory_that_only_its_owner_or_group_writes_is_used(mode: int, owner: int) -> None:
    assert directory_fault(FOLDER, found(stat.S_IFDIR, mode, owner), US) == ""


@pytest.mark.parametrize("user", [US, ROOT])
def test_a_directory_of_another_account_is_refused(user: int) -> None:
    told = directory_fault(FOLDER, found(stat.S_IFDIR, 0o700, OTHER), user)
    assert "user id 2000" in told
    assert f"chown -R {user} {FOLDER}" in told


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_directory_that_every_account_writes_is_refused(mode: int) -> None:
    told = directory_fault(FOLDER, found(stat.S_IFDIR, mode, US), US)
    assert f"mode {mode:04o}" in told
    assert f"chmod o-w {FOLDER}" in told


@pytest.mark.parametrize("user", [US, ROOT])
@pytest.mark.parametrize("mode", [0o1777, 0o3777])
def test_keys_are_read_from_a_sticky_directory_of_root(mode: int, user: int) -> None:
    volume = found(stat.S_IFDIR, mode, ROOT)
    assert directory_fault(FOLDER, volume, user, is_only_read=True) == ""
    assert "chmod o-w" in directory_fault(FOLDER, volume, user), "state is not kept there"


@pytest.mark.parametrize(("mode", "owner"), [(0o777, ROOT), (0o1777, US), (0o1777, OTHER)])
def test_keys_are_not_read_from_a_directory_where_others_can_replace_them(
    mode: int, owner: int
) -> None:
    assert directory_fault(FOLDER, found(stat.S_IFDIR, mode, owner), US, is_only_read=True)


@POSIX_ONLY
def test_a_directory_of_our_own_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "a" / "state"
    assert not own_directory(path, {"key.pem"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o755)
    (path / "key.pem").touch()
    assert own_directory(path, {"key.pem"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@POSIX_ONLY
def test_an_open_directory_of_other_programs_too_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "key.pem").touch()
    (tmp_path / "dpkg").touch()
    with pytest.raises(NotPrivate, match=r"such as dpkg; .*use a directory of its own"):
        own_directory(tmp_path, {"key.pem"})
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@POSIX_ONLY
def test_a_shared_directory_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    check_directory(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@POSIX_ONLY
def test_a_directory_that_is_truly_open_is_not_mended(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(NotPrivate, match="chmod o-w"):
        own_directory(tmp_path, ())
    with pytest.raises(NotPrivate, match="chmod o-w"):
        check_directory(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o777


@POSIX_ONLY
def test_an_open_key_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_new_file(path, b"key")
    assert read_key_file(path) == b"key"
    path.chmod(0o644)
    with pytest.raises(NotPrivate, match="chmod 600"):
        read_key_file(path)


@POSIX_ONLY
def test_a_file_is_replaced_as_a_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_take_its_place_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.mkdir()
    (path / "occupied").touch()
    with pytest.raises(OSError):  # noqa: PT011 -- which one depends on the system
        replace_file(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_crash_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"key")
    (tmp_path / ".key.pem.0123456789abcdef").write_bytes(b"half")
    (tmp_path / ".key.pem.backup").write_bytes(b"kept")
    remove_leftovers(path)
    assert sorted(it.name for it in tmp_path.iterdir()) == [".key.pem.backup", "key.pem"]


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_new_file_that_cannot_be_written_whole_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_new_file(tmp_path / "key", b"content")
    assert not list(tmp_path.iterdir())


def test_several_files_change_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_files(tmp_path, {"a": b"old", "b": b"old"})
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            replace_files(tmp_path, {"a": b"new", "b": b"new"})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "a": b"old",
        "b": b"old",
    }
    replace_files(tmp_path, {"a": b"new", "b": b"new"})
    assert (tmp_path / "b").read_bytes() == b"new"
