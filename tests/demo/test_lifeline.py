"""The parent is a process of its own here, because it gets killed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from demo.lifeline import Lifeline, run
from demo.processes import Process
from support.endings import all_end_with, members_of
from support.postgres import postgres_programs
from support.redis_server import redis_program
from support.waiting import until

ROOT = Path(__file__).parents[2]
ENVIRON = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
WAITING = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up'); signal.pause()"
)
WITH_A_CHILD_OF_ITS_OWN = f"""
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.run([sys.executable, "-u", "-c", {WAITING!r}])
"""
ASYNCHRONOUS = f"""
import asyncio, sys
from pathlib import Path
from demo.processes import Process

async def main():
    command = [sys.executable, "-c", {WITH_A_CHILD_OF_ITS_OWN!r}]
    async with Process("part", command, directory=Path(sys.argv[1])) as part:
        await part.line("up")
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
A_COMMAND = """
import sys
from demo.lifeline import run
run([sys.executable, "-c", "import signal, sys; print('up', file=sys.stderr); signal.pause()"])
"""
POSTGRES = """
import signal
from support.postgres import running_postgres
with running_postgres():
    print("up", flush=True)
    signal.pause()
"""
REDIS = """
import signal, sys
from pathlib import Path
from support.redis_server import redis_server
with redis_server(Path(sys.argv[1])):
    print("up", flush=True)
    signal.pause()
"""


def parent(program: str, directory: Path) -> Process:
    command = [sys.executable, "-c", program, str(directory)]
    # What it leaves in the folder for temporary files is removed with the test's own.
    environ = {**ENVIRON, "TMPDIR": str(directory)}
    return Process("parent", command, directory=directory, environ=environ)


@pytest.mark.parametrize("program", [ASYNCHRONOUS, A_COMMAND], ids=["process", "command"])
async def test_children_end_with_a_killed_parent(tmp_path: Path, program: str) -> None:
    async with parent(program, tmp_path) as killed:
        await killed.line("up")
        left = await all_end_with(killed.pid)
    assert len(left) >= 2  # the child and its watchdog


async def test_postgresql_ends_with_a_killed_parent(tmp_path: Path) -> None:
    postgres_programs()  # skips the test where there are none
    # Its user has to reach the folder, and the name of its socket must be short.
    directory = Path(run(["mktemp", "-d", "/tmp/byoai-XXXXXX"]).strip())
    directory.chmod(0o755)
    try:
        async with parent(POSTGRES, directory) as killed:
            await killed.line("up")
            left = await all_end_with(killed.pid)
    finally:
        shutil.rmtree(directory)
    assert len(left) > 3  # the server's own processes too


async def test_redis_ends_with_a_killed_parent(tmp_path: Path) -> None:
    redis_program()  # skips the test where there is none
    async with parent(REDIS, tmp_path) as killed:
        await killed.line("up")
        left = await all_end_with(killed.pid)
    assert len(left) == 2


def started(lifeline: Lifeline, *command: str) -> "subprocess.Popen[bytes]":
    with lifeline.tied(command) as (tied, stdin):
        return subprocess.Popen(tied, stdin=stdin, stdout=subprocess.PIPE, start_new_session=True)


async def test_the_watchdog_ends_with_the_child_and_what_the_child_left() -> None:
    lifeline = Lifeline()
    child = started(lifeline, "sh", "-c", "sleep 600 & echo $$")
    assert child.stdout is not None
    with child.stdout as output:
        assert int(output.readline()) == child.pid
        assert child.wait() == 0
        lifeline.cut()
        lifeline.cut()
        assert output.read() == b""  # the end of it: nothing that had it open goes on
    await until(lambda: members_of(child.pid) == [])


def test_a_tied_command_reads_an_empty_input_and_answers_its_own_code() -> None:
    assert run(["sh", "-c", 'cat; printf "%s" "$1 $2"', "sh", "a  b", "*"]) == "a  b *"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run(["sh", "-c", "exit 3"])
    assert failed.value.returncode == 3


def test_nothing_is_left_of_a_command_that_could_not_be_started() -> None:
    lifeline = Lifeline()
    before = set(Path("/dev/fd").iterdir())
    with pytest.raises(RuntimeError), lifeline.tied(["true"]):
        raise RuntimeError
    assert set(Path("/dev/fd").iterdir()) == before
