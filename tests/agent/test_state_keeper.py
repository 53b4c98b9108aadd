import asyncio
import errno
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from byoai_agent.disk_thread import DiskThread
from byoai_agent.reporter import Reporter
from byoai_agent.state import KeyPair, Membership, StateDirectory, StateError
from byoai_agent.state_keeper import StateKeeper
from byoai_shared.identity import new_tunnel_id
from support.disks import FailingDisk
from support.waiting import until


def pem(kind: str, text: str) -> bytes:
    return f"-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n".encode()


def pair(name: str) -> KeyPair:
    return KeyPair(pem("PRIVATE KEY", name), pem("CERTIFICATE", name))


MEMBERSHIP = Membership(
    tunnel_id=new_tunnel_id(),
    agent_id="agent-1",
    gateway_url="https://gateway.example",
    relays=("wss://relay.example:443",),
    services_ca_pem="ca",
)
NEWER = Membership(
    tunnel_id=MEMBERSHIP.tunnel_id,
    agent_id="agent-1",
    gateway_url="https://gateway.example",
    relays=("wss://other.example:443",),
    services_ca_pem="ca",
)


@dataclass
class Told(Reporter):
    """What a person was told of the disk."""

    sentences: list[str] = field(default_factory=list[str])

    def state_not_written(self, reason: str) -> None:
        self.sentences.append(reason)

    def state_written(self) -> None:
        self.sentences.append("works again")


class Keeping:
    """A keeper and its surroundings."""

    def __init__(self, state: StateDirectory) -> None:
        self.state = state
        self.told = Told()
        self.keeper = StateKeeper(state, self.told)


@pytest.fixture
def keeping(tmp_path: Path) -> Keeping:
    state = StateDirectory(tmp_path / "state")
    state.save(MEMBERSHIP, pair("link"), pair("end"))
    return Keeping(state)


async def test_what_is_kept_is_on_the_disk(keeping: Keeping) -> None:
    new = pair("new")
    keeping.state.save_next_key(new.key_pem)
    await keeping.keeper.keep(link=new, end_to_end=pair("new-end"), membership=NEWER)
    assert keeping.state.link() == new
    assert keeping.state.end_to_end() == pair("new-end")
    assert keeping.state.membership() == NEWER
    assert keeping.state.next_key() is None
    assert keeping.told.sentences == []


@pytest.mark.parametrize("after", [0, 1, 2, 3])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
async def test_what_the_disk_refuses_is_written_once_it_can_be(
    keeping: Keeping, disk: FailingDisk, number: int, after: int
) -> None:
    """Each of the four writes fails in turn; the status report alone is given up."""
    keeper, state = keeping.keeper, keeping.state
    disk.fail(number, after=after)
    await keeper.keep(link=pair("new"), end_to_end=pair("new-end"), membership=NEWER)
    await keeper.report(b"first")
    await keeper.report(b"second")
    assert len(keeping.told.sentences) == 1
    assert keeper.problem.startswith("cannot write")
    disk.mend()
    await keeper.report(b"third")
    assert keeper.problem == ""
    assert keeping.told.sentences[1:] == ["works again"]
    assert (state.link(), state.end_to_end()) == (pair("new"), pair("new-end"))
    assert state.membership() == NEWER
    assert state.status() == b"third"


async def test_only_the_newest_of_each_is_kept(keeping: Keeping, disk: FailingDisk) -> None:
    disk.fail()
    await keeping.keeper.keep(link=pair("first"))
    await keeping.keeper.keep(link=pair("second"))
    disk.mend()
    await keeping.keeper.close(b"{}")
    assert keeping.state.link() == pair("second")


async def test_keys_are_not_offered_unless_they_are_saved(
    keeping: Keeping, disk: FailingDisk
) -> None:
    disk.fail()
    with pytest.raises(StateError, match="No space left") as failed:
        await keeping.keeper.save_offer(b"offered", pair("offered-end"))
    assert not failed.value.is_fatal
    assert keeping.state.next_key() is None
    disk.mend()
    await keeping.keeper.save_offer(b"offered", pair("offered-end"))
    assert keeping.state.next_key() == b"offered"
    assert keeping.state.next_end_to_end() == pair("offered-end")


async def test_keys_are_offered_only_with_the_key_that_signs_on_the_disk(
    keeping: Keeping, disk: FailingDisk
) -> None:
    disk.fail()
    await keeping.keeper.keep(link=pair("new"))
    disk.mend()
    await keeping.keeper.save_offer(b"offered", None)
    assert keeping.state.link() == pair("new")


async def test_a_report_does_not_discard_keys_that_were_offered_meanwhile(
    keeping: Keeping, disk: FailingDisk
) -> None:
    """It was asked for when the former renewal's key was in memory only."""
    disk.fail()
    await keeping.keeper.keep(link=pair("new"))
    disk.mend()
    offering = asyncio.create_task(keeping.keeper.save_offer(b"offered", pair("offered-end")))
    await asyncio.sleep(0)
    reporting = asyncio.create_task(keeping.keeper.report(b"{}"))
    await offering
    await reporting
    assert keeping.state.link() == pair("new")
    assert keeping.state.next_key() == b"offered"
    assert keeping.state.next_end_to_end() == pair("offered-end")


async def test_a_slow_disk_does_not_hold_up_the_event_loop(
    keeping: Keeping, disk: FailingDisk
) -> None:
    began, may_go_on = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        may_go_on.wait()

    disk.before_write = wait
    write = asyncio.create_task(keeping.keeper.report(b"{}"))
    await until(began.is_set)
    assert not write.done()
    may_go_on.set()
    await write
    assert keeping.state.status() == b"{}"


async def test_a_disk_that_never_answers_is_told_and_given_up(
    keeping: Keeping, disk: FailingDisk
) -> None:
    may_go_on = threading.Event()
    disk.before_write = may_go_on.wait
    keeper = StateKeeper(keeping.state, keeping.told, wait_s=0.01, short_wait_s=0.005)
    await keeper.keep(link=pair("new"))
    assert keeping.told.sentences == []  # not late enough to be told
    await keeper.report(b"{}")
    assert "did not finish a write" in keeping.told.sentences[0]
    with pytest.raises(StateError, match="did not finish"):
        await keeper.save_offer(b"offered", None)
    await keeper.close(b"{}")
    may_go_on.set()
    mended = StateKeeper(keeping.state, keeping.told)
    await mended.keep(link=pair("new"))
    assert keeping.state.link() == pair("new")


async def test_only_one_call_runs_at_a_time() -> None:
    thread, running, most = DiskThread(), 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1

    await asyncio.gather(*(thread.call(work, 50) for _ in range(20)))
    assert most == 1


async def test_an_error_of_a_call_is_raised_where_it_is_awaited() -> None:
    def fail() -> None:
        raise StateError("sick")

    with pytest.raises(StateError, match="sick"):
        await DiskThread().call(fail, 50)


async def test_a_call_goes_on_when_its_caller_is_cancelled() -> None:
    may_go_on, ended = threading.Event(), threading.Event()

    def work() -> None:
        may_go_on.wait()
        ended.set()

    thread = DiskThread()
    caller = asyncio.create_task(thread.call(work, 50))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    may_go_on.set()
    await thread.call(lambda: None, 50)
    assert ended.is_set()
