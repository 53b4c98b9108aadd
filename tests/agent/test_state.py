import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from byoai_agent.enrol import require_free
from byoai_agent.state import (
    KeyPair,
    Membership,
    StateDirectory,
    StateError,
    default_directory,
)
from byoai_shared.identity import new_tunnel_id
from demo.lifeline import run
from support.disks import FailingDisk

POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="no mode bits on Windows")


def pem(kind: str, text: str) -> bytes:
    return f"-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n".encode()


LINK = KeyPair(pem("PRIVATE KEY", "link"), pem("CERTIFICATE", "leaf") + pem("CERTIFICATE", "ca"))
END_TO_END = KeyPair(pem("PRIVATE KEY", "end"), pem("CERTIFICATE", "end"))


def membership() -> Membership:
    return Membership(
        tunnel_id=new_tunnel_id(),
        agent_id="agent-1",
        gateway_url="https://gateway.example",
        relays=("wss://relay.example:443",),
        services_ca_pem="ca",
    )


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "deep" / "state")


@pytest.fixture
def joined(state: StateDirectory) -> StateDirectory:
    state.save(membership(), LINK, END_TO_END)
    return state


def test_what_was_saved_is_read(state: StateDirectory) -> None:
    saved = membership()
    assert not state.is_joined
    state.save(saved, LINK, END_TO_END)
    assert StateDirectory(state.path).is_joined
    assert state.membership() == saved
    assert state.link() == LINK
    assert state.end_to_end() == END_TO_END


@POSIX_ONLY
def test_nobody_else_can_read_it(joined: StateDirectory) -> None:
    joined.save_status(b"{}")
    joined.save_next_key(LINK.key_pem)
    joined.lock().release()
    assert stat.S_IMODE(joined.path.stat().st_mode) == 0o700
    files = list(joined.path.iterdir())
    assert len(files) == 6
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@POSIX_ONLY
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
@pytest.mark.parametrize("name", ["link.pem", "end-to-end.pem"])
def test_a_key_others_can_read_is_refused(joined: StateDirectory, name: str, mode: int) -> None:
    (joined.path / name).chmod(mode)
    with pytest.raises(StateError, match=f"others can read .*{name}.*chmod 600") as refused:
        read_all(joined)
    assert refused.value.is_fatal


@POSIX_ONLY
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_an_identity_others_can_write_is_refused(joined: StateDirectory, mode: int) -> None:
    """They could name another gateway and its CA."""
    (joined.path / "agent.json").chmod(mode)
    with pytest.raises(StateError, match=r"others can write .*agent.json.*chmod 600"):
        read_all(joined)


@POSIX_ONLY
def test_an_identity_others_can_read_holds_no_secret(joined: StateDirectory) -> None:
    (joined.path / "agent.json").chmod(0o644)
    read_all(joined)


@POSIX_ONLY
@pytest.mark.parametrize("mode", [0o755, 0o750, 0o705, 0o770])
def test_a_directory_as_systemd_makes_it_is_closed(joined: StateDirectory, mode: int) -> None:
    joined.path.chmod(mode)
    read_all(joined)
    notice = joined.close_to_others()
    assert "StateDirectoryMode=0700" in notice
    assert stat.S_IMODE(joined.path.stat().st_mode) == 0o700
    assert joined.close_to_others() == ""


@POSIX_ONLY
def test_joining_closes_a_directory_that_is_there(state: StateDirectory) -> None:
    state.path.mkdir(parents=True, mode=0o755)
    state.save(membership(), LINK, END_TO_END)
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700


@POSIX_ONLY
@pytest.mark.parametrize("name", ["dpkg", "link.pem.bak", ".ssh", ".cache.0011223344556677"])
def test_joining_leaves_a_directory_of_other_programs_alone(
    state: StateDirectory, name: str
) -> None:
    """As with `join --state-dir /var/lib`."""
    (state.path / name).mkdir(parents=True)
    state.path.chmod(0o755)
    with pytest.raises(StateError, match=rf"such as {name}.*use a directory of its own") as refused:
        require_free(state, replace=False)
    assert refused.value.is_fatal
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o755
    assert "use a directory of its own" in state.close_to_others()
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o755


@POSIX_ONLY
def test_a_directory_with_every_file_of_an_agent_is_its_own(joined: StateDirectory) -> None:
    joined.save_next_key(LINK.key_pem, END_TO_END)
    joined.save_status(b"{}")
    joined.lock().release()
    (joined.path / ".link.pem.0011223344556677").write_bytes(b"")
    (joined.path / "agent.toml").touch()
    (joined.path / "lost+found").mkdir()
    with joined.reserved_room():
        joined.path.chmod(0o755)
        joined.prepare()
    assert stat.S_IMODE(joined.path.stat().st_mode) == 0o700


@POSIX_ONLY
def test_a_directory_whose_mode_cannot_be_changed_is_used(
    joined: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only disk: the keys in it have modes of their own."""
    joined.path.chmod(0o755)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "chmod", read_only)
    assert "StateDirectoryMode=0700" in joined.close_to_others()
    read_all(joined)


@POSIX_ONLY
def test_a_directory_everybody_can_write_is_refused(joined: StateDirectory) -> None:
    joined.path.chmod(0o777)
    with pytest.raises(StateError, match="every account can write"):
        read_all(joined)
    with pytest.raises(StateError, match="every account can write"):
        joined.prepare()


def read_all(state: StateDirectory) -> None:
    state.membership()
    state.link()
    state.end_to_end()


@pytest.mark.parametrize(
    ("number", "is_fatal"), [(errno.EACCES, True), (errno.EIO, False), (errno.ESTALE, False)]
)
def test_a_directory_that_cannot_be_looked_into_says_what_to_do(
    joined: StateDirectory, monkeypatch: pytest.MonkeyPatch, number: int, is_fatal: bool
) -> None:
    def refuse(_: Path) -> os.stat_result:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "stat", refuse)
    for read in (joined.membership, joined.next_key, joined.status):
        with pytest.raises(StateError, match="run this as the user who joined") as failed:
            read()
        assert failed.value.is_fatal == is_fatal


def test_where_no_agent_lives(state: StateDirectory) -> None:
    with pytest.raises(StateError, match="join first: byoai-agent join CODE"):
        state.membership()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"tunnel_id": 5}'])
def test_a_damaged_membership_says_what_to_do(joined: StateDirectory, content: bytes) -> None:
    (joined.path / "agent.json").write_bytes(content)
    with pytest.raises(StateError, match=r"agent.json is damaged.*join again"):
        joined.membership()


@pytest.mark.parametrize(
    "content", [b"", LINK.key_pem, LINK.certificate_pem, LINK.key_pem * 2 + LINK.certificate_pem]
)
def test_a_damaged_key_file_says_what_to_do(joined: StateDirectory, content: bytes) -> None:
    (joined.path / "link.pem").write_bytes(content)
    with pytest.raises(StateError, match=r"link.pem is damaged.*join again"):
        joined.link()


def test_a_missing_key_file_says_what_to_do(joined: StateDirectory) -> None:
    (joined.path / "end-to-end.pem").unlink()
    with pytest.raises(StateError, match=r"cannot read .*end-to-end.pem"):
        joined.end_to_end()


def test_key_and_certificate_change_in_one_step(
    joined: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash before the rename leaves the old pair whole, and no half-written file is read."""

    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(StateError, match=r"cannot write .*link.pem: No space left"):
        joined.save_link(END_TO_END)
    monkeypatch.undo()
    assert joined.link() == LINK
    assert sorted(file.name for file in joined.path.iterdir()) == [
        "agent.json",
        "end-to-end.pem",
        "link.pem",
    ]


WRITES: list[Callable[[StateDirectory], object]] = [
    lambda state: state.save(membership(), END_TO_END, LINK),
    lambda state: state.save_membership(membership()),
    lambda state: state.save_link(END_TO_END),
    lambda state: state.save_end_to_end(LINK),
    lambda state: state.save_next_key(b"offered"),
    lambda state: state.save_next_key(b"offered", END_TO_END),
    lambda state: state.save_status(b"{}"),
    lambda state: state.reserved_room().__enter__(),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("nth", [0, 1, 2])
@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "mount it writable"),
        (errno.EIO, "check it"),
        (errno.EFBIG, "ulimit -f"),
        (errno.ESTALE, "check the disk"),
    ],
)
def test_a_write_that_fails_changes_nothing_and_says_what_to_do(
    joined: StateDirectory,
    disk: FailingDisk,
    write: Callable[[StateDirectory], object],
    nth: int,
    number: int,
    advice: str,
) -> None:
    before = contents(joined)
    disk.fail(number, after=nth)
    error = failure_of(write, joined)
    if error is None:
        assert disk.writes <= nth  # it makes fewer writes
        return
    assert advice in str(error)
    assert not error.is_fatal
    assert before.items() <= contents(joined).items()
    assert not list(joined.path.glob(".*"))


def contents(state: StateDirectory) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in state.path.iterdir()}


def failure_of(
    write: Callable[[StateDirectory], object], state: StateDirectory
) -> StateError | None:
    try:
        write(state)
    except StateError as error:
        return error
    return None


def test_a_join_over_an_agent_leaves_it_whole_when_the_disk_is_full(
    joined: StateDirectory, disk: FailingDisk
) -> None:
    former = joined.membership()
    for nth in range(3):
        disk.fail(errno.ENOSPC, after=nth)
        with pytest.raises(StateError, match="No space left"):
            joined.save(membership(), END_TO_END, LINK)
        assert (joined.membership(), joined.link()) == (former, LINK)
        assert joined.end_to_end() == END_TO_END


def test_reserved_room_is_given_back(joined: StateDirectory) -> None:
    with joined.reserved_room():
        assert (joined.path / "reserved").stat().st_size > 0
    assert not (joined.path / "reserved").exists()


def test_a_read_that_may_work_later_is_not_final(
    joined: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sick(_: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", sick)
    with pytest.raises(StateError, match="cannot read") as failed:
        joined.membership()
    assert not failed.value.is_fatal


def test_both_offered_keys_are_kept(joined: StateDirectory) -> None:
    joined.save_next_key(b"offered", END_TO_END)
    assert joined.next_end_to_end() == END_TO_END
    joined.save_next_key(b"another")
    assert joined.next_end_to_end() is None
    joined.save_next_key(b"offered", END_TO_END)
    joined.discard_next_key()
    assert (joined.next_key(), joined.next_end_to_end()) == (None, None)


def test_an_offered_key_is_kept_until_it_is_settled(joined: StateDirectory) -> None:
    assert joined.next_key() is None
    joined.save_next_key(END_TO_END.key_pem, LINK)
    assert joined.next_key() == END_TO_END.key_pem
    joined.save_link(END_TO_END)
    assert joined.next_key() is None
    assert joined.next_end_to_end() is None


def test_a_key_of_a_later_renewal_stays_when_an_earlier_one_is_saved(
    joined: StateDirectory,
) -> None:
    joined.save_next_key(b"offered", LINK)
    joined.save_link(END_TO_END)
    assert joined.next_key() == b"offered"
    assert joined.next_end_to_end() == LINK


def test_leftovers_of_a_crash_are_removed(joined: StateDirectory) -> None:
    (joined.path / ".link.pem.0011223344556677").write_bytes(LINK.key_pem)
    joined.lock().release()
    assert not list(joined.path.glob(".*"))


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match=r"cannot make the state directory .*--state-dir"):
        StateDirectory(tmp_path / "file" / "state").prepare()


def test_two_agents_do_not_share_a_state(joined: StateDirectory) -> None:
    program = (
        "import sys; from pathlib import Path; from byoai_agent.state import *\n"
        "from byoai_agent.state_lock import StateLocked\n"
        "try: StateDirectory(Path(sys.argv[1])).lock()\n"
        "except StateLocked as error: print(error)"
    )
    command = [sys.executable, "-c", program, str(joined.path)]
    lock = joined.lock()
    assert "another byoai-agent runs" in run(command)
    lock.release()
    assert run(command) == ""


def test_keys_are_not_printed(joined: StateDirectory) -> None:
    assert "PRIVATE" not in repr(joined.link())


@POSIX_ONLY
def test_the_place_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_directory({}) == Path.home() / ".local/state/byoai-agent"
    assert default_directory({"XDG_STATE_HOME": "/x"}) == Path("/x/byoai-agent")
    assert default_directory({"STATE_DIRECTORY": "/var/lib/a:/b"}) == Path("/var/lib/a")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Application Support" in str(default_directory({}))
    monkeypatch.setattr(sys, "platform", "win32")
    assert default_directory({"LOCALAPPDATA": "/l"}) == Path("/l/byoai-agent")
