import errno
import os
import sys
import tempfile
from pathlib import Path

import pytest

from byoai_agent import state_lock
from byoai_agent.state_lock import StateLock, StateLocked, is_locked
from demo.lifeline import run

POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="Windows locks in another way")
NO_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO]
HELD = """
import sys
from pathlib import Path
from byoai_agent.state_lock import is_locked
print(is_locked(Path(sys.argv[1])))
"""


def is_locked_for_others(path: Path) -> bool:
    return run([sys.executable, "-c", HELD, str(path)]).strip() == "True"


def test_a_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    lock = StateLock(path)
    assert lock.weakness == ""
    assert is_locked_for_others(path)
    lock.release()
    lock.release()
    assert not is_locked_for_others(path)


@POSIX_ONLY
@pytest.mark.parametrize("number", NO_LOCKS)
def test_without_locks_another_place_keeps_a_second_agent_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fail(monkeypatch, "_lock_file", number)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "state").mkdir()
    lock = StateLock(tmp_path / "state" / "lock")
    assert "on another host" in lock.weakness
    assert os.strerror(number) in lock.weakness
    assert len(list(tmp_path.glob("byoai-agent-*.lock"))) == 1
    lock.release()


@POSIX_ONLY
def test_without_any_lock_the_agent_starts_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, "_lock_file", errno.ENOLCK)
    fail(monkeypatch, "_lock_range", errno.ENOLCK)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lock = StateLock(tmp_path / "lock")
    assert "make sure that no second agent uses it" in lock.weakness
    lock.release()


@POSIX_ONLY
def test_a_link_in_a_place_for_everybody_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, "_lock_file", errno.ENOLCK)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    StateLock(tmp_path / "lock").release()
    (file,) = tmp_path.glob("byoai-agent-*.lock")
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert "no second agent" in StateLock(tmp_path / "lock").weakness
    assert not (tmp_path / "elsewhere").exists()


@POSIX_ONLY
def test_where_no_file_can_be_made_the_directory_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def read_only(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", read_only)
    lock = StateLock(tmp_path / "lock")
    assert lock.weakness == ""
    with pytest.raises(StateLocked):
        StateLock(tmp_path / "lock")
    lock.release()


def fail(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(state_lock, name, refuse)
