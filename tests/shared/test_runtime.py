import asyncio
import gc
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import NoReturn

import pytest

from byoai_shared import logs, runtime

WAIT_S = 25.0


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)


def test_it_returns_the_programs_exit_code() -> None:
    async def main() -> int:
        await asyncio.sleep(0)
        return 7

    assert runtime.run(main) == 7


def test_it_spares_the_collector_what_was_imported() -> None:
    async def main() -> int:
        return gc.get_freeze_count()

    assert runtime.run(main) > 0
    assert gc.get_freeze_count() == 0


def test_it_spares_the_program_most_full_collections() -> None:
    async def main() -> int:
        return gc.get_threshold()[0]

    assert runtime.run(main) == 100_000


async def loop_module() -> int:
    module = type(asyncio.get_running_loop()).__module__
    return int(module.startswith("uvloop"))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop on Windows")
def test_it_runs_on_uvloop_where_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BYOAI_EVENT_LOOP", raising=False)
    assert runtime.run(loop_module) == 1


def test_it_runs_on_asyncios_own_loop_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYOAI_EVENT_LOOP", "asyncio")
    assert runtime.run(loop_module) == 0


def test_it_runs_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BYOAI_EVENT_LOOP", raising=False)
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert runtime.run(loop_module) == 0


def test_an_error_of_the_program_is_not_swallowed() -> None:
    async def main() -> NoReturn:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        runtime.run(main)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_ctrl_c_before_the_program_listens_ends_it_quietly(
    monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    monkeypatch.setenv("BYOAI_EVENT_LOOP", loop)
    cancelled: list[bool] = []

    async def main() -> int:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return 0

    assert runtime.run(main) == runtime.INTERRUPTED
    assert cancelled == [True]


@pytest.fixture
def hangup_heard() -> Iterator[None]:
    """As in a terminal, also where the tests were started to outlive theirs."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("hangup_heard")
def test_the_first_signal_asks_and_the_second_insists(
    monkeypatch: pytest.MonkeyPatch, loop: str, number: signal.Signals
) -> None:
    monkeypatch.setenv("BYOAI_EVENT_LOOP", loop)

    async def main() -> int:
        async with runtime.StopSignal() as stop, asyncio.timeout(WAIT_S):
            signal.raise_signal(number)
            await stop.requested.wait()
            assert not stop.insisted.is_set()
            signal.raise_signal(number)
            await stop.insisted.wait()
        return 3

    assert runtime.run(main) == 3


async def test_signals_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with runtime.StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


async def test_signals_work_where_the_loop_cannot_listen_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unable(*_: object) -> NoReturn:
        raise NotImplementedError

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "add_signal_handler", unable)
    monkeypatch.setattr(loop, "remove_signal_handler", unable)
    before = signal.getsignal(signal.SIGTERM)
    async with runtime.StopSignal() as stop, asyncio.timeout(WAIT_S):
        signal.raise_signal(signal.SIGTERM)
        await stop.requested.wait()
        signal.raise_signal(signal.SIGINT)
        await stop.insisted.wait()
    assert signal.getsignal(signal.SIGTERM) == before


def _broken_callback(payload: bytes) -> None:
    raise RuntimeError(f"callback of {len(payload)} bytes broke")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.usefixtures("structlog_as_before")
def test_what_the_loop_reports_is_logged_without_the_arguments_of_callbacks(
    monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    monkeypatch.setenv("BYOAI_EVENT_LOOP", loop)
    stream = io.StringIO()
    logs.configure(form="json", stream=stream)

    async def main() -> int:
        asyncio.get_running_loop().call_soon(_broken_callback, b"canary")
        await asyncio.sleep(0)
        return 0

    runtime.run(main)
    line = json.loads(stream.getvalue())
    assert line["event"] == "loop.error"
    assert line["message"].startswith("Exception in callback")
    assert line["exception"][0]["exc_value"] == "callback of 6 bytes broke"
    assert "canary" not in stream.getvalue()


async def test_a_closed_terminal_stops_nothing_that_was_started_with_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with runtime.StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            await asyncio.sleep(0)
            assert not stop.requested.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


_STUCK = """
import asyncio, signal, sys
from byoai_shared import entry_point, runtime

async def stuck():
    async with runtime.StopSignal() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0)
        await stop.insisted.wait()
        await asyncio.Event().wait()

entry_point.run(lambda: lambda: sys.exit(runtime.run(stuck)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing ends by a signal on Windows")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_third_signal_ends_a_program_that_acts_on_none(loop: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _STUCK],
        env={**os.environ, "BYOAI_EVENT_LOOP": loop},
        capture_output=True,
        check=False,
        timeout=WAIT_S,
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGTERM, b"")
