import os
import stat
import sys
from pathlib import Path

import pytest

from byoai_agent.state import (
    KeyPair,
    Membership,
    StateDirectory,
    StateError,
    default_directory,
)
from byoai_shared.identity import new_tunnel_id
from demo.lifeline import run

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
@pytest.mark.parametrize("name", ["agent.json", "link.pem", "end-to-end.pem"])
def test_a_file_others_can_read_is_refused(joined: StateDirectory, name: str, mode: int) -> None:
    (joined.path / name).chmod(mode)
    with pytest.raises(StateError, match=f"others can read .*{name}.*chmod 600"):
        read_all(joined)


@POSIX_ONLY
@pytest.mark.parametrize("mode", [0o750, 0o705, 0o770])
def test_a_directory_others_can_read_is_refused(joined: StateDirectory, mode: int) -> None:
    joined.path.chmod(mode)
    with pytest.raises(StateError, match=r"others can read .*chmod 700"):
        read_all(joined)
    with pytest.raises(StateError, match="others can read"):
        joined.prepare()
    joined.path.chmod(0o700)
    read_all(joined)


def read_all(state: StateDirectory) -> None:
    state.membership()
    state.link()
    state.end_to_end()


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


def test_an_offered_key_is_kept_until_it_is_settled(joined: StateDirectory) -> None:
    assert joined.next_key() is None
    joined.save_next_key(b"offered")
    assert joined.next_key() == b"offered"
    joined.save_link(END_TO_END)
    assert joined.next_key() is None


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
        "try: StateDirectory(Path(sys.argv[1])).lock()\n"
        "except StateError as error: print(error)"
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
