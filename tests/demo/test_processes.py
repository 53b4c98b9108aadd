import asyncio
import sys
from pathlib import Path

import pytest

from demo.processes import Process, ProcessError, output_of
from demo.settings import Value, toml

READY = """
import json, signal, sys
print("some text", flush=True)
print(json.dumps({"event": "part.ready", "port": 7}), flush=True)
signal.sigwait({signal.SIGTERM}) if "--stubborn" not in sys.argv else signal.pause()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY


def python(code: str, *arguments: str) -> list[str]:
    # Without this the signal would end the program before it waits for it.
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
    return [sys.executable, "-c", (block if code is READY else "") + code, *arguments]


async def test_is_up_when_it_says_so_and_stops_in_order(tmp_path: Path) -> None:
    async with Process("part", python(READY), directory=tmp_path) as part:
        assert (await part.ready())["port"] == 7
        assert part.is_running
        assert await part.stop() == 0
    assert not part.is_running


async def test_one_that_ends_early_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    part = Process("part", python("print('no licence'); exit(3)"), directory=tmp_path)
    async with part:
        with pytest.raises(ProcessError, match=r"part ended early; its last lines:\n +no licence"):
            await part.ready()
        assert await part.stop() == 3


async def test_one_that_never_says_so_is_an_error_in_time(tmp_path: Path) -> None:
    code = "import signal; print('hm', flush=True); signal.pause()"
    async with Process("part", python(code), directory=tmp_path) as part:
        await part.line("hm")
        with pytest.raises(ProcessError, match=r"not get as far as expected in 0\.01 s.*\n +hm"):
            await part.ready(timeout_s=0.01)


async def test_begins_anew_after_a_kill_and_its_log_goes_on(tmp_path: Path) -> None:
    async with Process("part", python(READY), directory=tmp_path) as part:
        await part.ready()
        first = part.pid
        await part.kill()
        await part.start()
        await part.ready()
        assert part.pid != first
    assert part.log_path.read_text().count("part.ready") == 2


async def test_one_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    async with Process("part", python(STUBBORN, "--stubborn"), directory=tmp_path) as part:
        await part.ready()
        assert await part.stop(timeout_s=0.05) == -9


async def test_its_own_children_do_not_outlive_it(tmp_path: Path) -> None:
    """They share its session, and the pipe would stay open for as long as one lives."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "print('up', flush=True); child.wait()"
    )
    async with Process("part", python(code), directory=tmp_path) as part:
        await part.line("up")
        async with asyncio.timeout(50):
            await part.kill()


async def test_a_command_that_fails_says_what_it_said() -> None:
    code = "import sys; print('half', end=''); sys.exit('out of paper')"
    with pytest.raises(ProcessError, match="exit code 1:\nout of paper\nhalf"):
        await output_of(python(code))


async def test_a_command_that_hangs_is_ended_in_time() -> None:
    with pytest.raises(ProcessError, match=r"longer than 0\.05 s"):
        await output_of(python("import signal; signal.pause()"), timeout_s=0.05)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("C:\\key", '"C:\\\\key"'),
        (True, "true"),
        (0.5, "0.5"),
        (["a", "b"], '["a", "b"]'),
        ([{"address": "wss://a"}], '[{address = "wss://a"}]'),
    ],
)
def test_settings_are_toml(value: Value, expected: str) -> None:
    assert toml(value) == expected
