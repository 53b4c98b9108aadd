"""Printing that fails in every way, in real processes: it ends no program and holds up none."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

import pytest

from byoai_shared import logs
from byoai_shared.standard_streams import MAX_QUEUED_BYTES, BackgroundStream, TolerantStream

ROOT: Final = Path(__file__).parents[2]
ENDED_S: Final = 50.0
LINE_BYTES: Final = 400
"""At least this long is each line of the service below."""
PIPE_BYTES: Final = 64 * 1024
"""What a pipe holds on Linux."""
PROGRAMS: Final = (
    "byoai_agent.__main__:main",
    "byoai_relay.__main__:main",
    "byoai_gateway.__main__:main",
)
POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="it closes and fills pipes by number")
NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")

SERVICE = """
import asyncio, sys
from byoai_shared import logs, runtime, standard_streams

async def serve():
    async with runtime.StopSignal() as stop:
        for number in range(int(sys.argv[3])):
            logs.get_logger("test").info("line.written", count=number, reason="x" * 400)
            print("printed", file=sys.stderr)
            print("printed")
            await asyncio.sleep(0)
        open(sys.argv[1], "w").close()  # the event loop came this far
        await stop.requested.wait()
    return 7

def main():
    standard_streams.write_in_background()
    logs.configure(form=sys.argv[2])
    sys.exit(runtime.run(serve))

standard_streams.run(main)
"""


def python_of(entry: str) -> list[str]:
    module, _, function = entry.partition(":")
    return [sys.executable, "-c", f"from {module} import {function} as main; main()"]


def closed_pipe() -> int:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


BROKEN: Final = [
    pytest.param(closed_pipe, id="reader gone"),
    pytest.param(full_disk, id="disk full", marks=NEEDS_FULL),
]


def test_each_program_protects_its_streams() -> None:
    """Otherwise what follows would be about something else than the installed commands."""
    installed = [
        tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"]["scripts"]
        for name in ("agent", "relay", "gateway")
    ]
    assert tuple(next(iter(scripts.values())) for scripts in installed) == PROGRAMS


# -- commands


@POSIX_ONLY
@pytest.mark.parametrize("entry", PROGRAMS)
@pytest.mark.parametrize("arguments", [["settings"], ["--help"], ["--version"]])
def test_a_reader_that_has_seen_enough_is_no_failure(entry: str, arguments: list[str]) -> None:
    out = closed_pipe()
    ended = subprocess.run(
        [*python_of(entry), *arguments],
        stdout=out,
        stderr=subprocess.PIPE,
        check=False,
        timeout=ENDED_S,
    )
    os.close(out)
    assert (ended.returncode, ended.stderr) == (0, b"")


@NEEDS_FULL
@pytest.mark.parametrize("entry", PROGRAMS)
def test_output_that_was_lost_is_a_failure_in_one_sentence(entry: str) -> None:
    out = full_disk()
    ended = subprocess.run(
        [*python_of(entry), "settings"],
        stdout=out,
        stderr=subprocess.PIPE,
        check=False,
        timeout=ENDED_S,
    )
    os.close(out)
    assert ended.returncode == 1
    assert ended.stderr == b"cannot write the output: No space left on device\n"


@POSIX_ONLY
@pytest.mark.parametrize("entry", PROGRAMS)
def test_streams_that_are_closed_from_the_start_are_missed_by_nobody(entry: str) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *python_of(entry)]
    for arguments, code in (["settings"], 0), (["nonsense"], 2):
        ended = subprocess.run([*command, *arguments], check=False, timeout=ENDED_S)
        assert ended.returncode == code


@POSIX_ONLY
@pytest.mark.parametrize("make", BROKEN)
@pytest.mark.parametrize("entry", PROGRAMS)
def test_an_error_that_cannot_be_printed_keeps_its_exit_code(
    entry: str, make: Callable[[], int]
) -> None:
    err = make()
    command = [*python_of(entry), "nonsense"]
    ended = subprocess.run(command, stderr=err, check=False, timeout=ENDED_S)
    os.close(err)
    assert ended.returncode == 2


def test_a_terminal_that_knows_no_check_mark_shows_something_else() -> None:
    program = "from byoai_shared import standard_streams as s; s.protect(); print('\\u2713 joined')"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=ENDED_S,
    )
    assert ended.stdout.strip() == b"? joined"


# -- services


class Service:
    """A program that logs more than a pipe holds and less than its queue, and waits for a stop.

    Leaving its context kills it, also when the test's time limit ends the test.
    """

    def __init__(
        self,
        tmp_path: Path,
        form: str,
        *,
        lines: int = 1000,
        shell: Sequence[str] = (),
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        self._done = tmp_path / "done"
        program = [sys.executable, "-c", SERVICE, str(self._done), form, str(lines)]
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [*shell, *program], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def work(self) -> None:
        """Wait until its event loop has logged everything; the test's own limit ends the wait."""
        while not self._done.exists():
            assert self.process.poll() is None, "it ended"
            time.sleep(0.002)

    def stop(self) -> int:
        """Stop it; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(ENDED_S)


def served(tmp_path: Path, output: int, form: str, lines: int = 1000) -> int:
    """The exit code of a service that got as far as it could."""
    with Service(tmp_path, form, lines=lines, stdout=output, stderr=output) as service:
        service.work()
        return service.stop()


@POSIX_ONLY
@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("make", BROKEN)
def test_a_service_goes_on_when_nothing_takes_its_log(
    tmp_path: Path, make: Callable[[], int], form: str
) -> None:
    output = make()
    assert served(tmp_path, output, form) == 7
    os.close(output)


@POSIX_ONLY
@pytest.mark.parametrize("form", ["json", "console"])
def test_a_service_goes_on_when_nobody_reads_its_log(tmp_path: Path, form: str) -> None:
    reader, writer = os.pipe()
    more_than_its_queue = MAX_QUEUED_BYTES // LINE_BYTES * 2
    assert served(tmp_path, writer, form, more_than_its_queue) == 7
    os.close(reader)
    os.close(writer)


@POSIX_ONLY
def test_a_service_goes_on_without_streams(tmp_path: Path) -> None:
    shell = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
    with Service(tmp_path, "json", shell=shell) as service:
        service.work()
        assert service.stop() == 7


def test_all_lines_arrive_in_order_where_somebody_reads(tmp_path: Path) -> None:
    """However slowly: the queue holds them all."""
    nowhere, pipe = subprocess.DEVNULL, subprocess.PIPE
    with Service(tmp_path, "json", lines=1000, stdout=nowhere, stderr=pipe) as service:
        assert service.process.stderr is not None
        service.work()
        counts: list[int] = []
        read = 0
        for line in service.process.stderr:
            read += len(line)
            if line.startswith(b"{"):
                counts.append(json.loads(line)["count"])
            if len(counts) == 1000:
                break
        assert 2 * PIPE_BYTES < read < MAX_QUEUED_BYTES
        assert service.stop() == 7
    assert counts == list(range(1000))


@POSIX_ONLY
@pytest.mark.usefixtures("structlog_as_before")
def test_lost_lines_are_counted_once_the_log_is_read_again() -> None:
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as text:  # noqa: PTH123 -- a descriptor
        stream = BackgroundStream(TolerantStream(text), max_bytes=10_000)
        logs.configure(form="json", stream=stream)
        log = logs.get_logger("test")
        for _ in range(500):
            log.info("line.written", reason="x" * 400)
        heard = Reading(reader)
        assert stream.drain(ENDED_S)
        log.info("line.written")
        log.info("line.written")
        assert stream.drain(ENDED_S)
    lines = heard.lines()
    lost = sum(line["count"] for line in lines if line["event"] == "log.lines_lost")
    written = [line for line in lines if line["event"] == "line.written"]
    assert lost > 0
    assert len(written) + lost == 502


class Reading:
    """What comes out of a pipe, read to its end in a thread."""

    def __init__(self, reader: int) -> None:
        self._lines: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read, args=(reader,), daemon=True)
        self._thread.start()

    def lines(self) -> list[dict[str, Any]]:
        self._thread.join(ENDED_S)
        return self._lines

    def _read(self, reader: int) -> None:
        with open(reader, encoding="utf-8") as text:
            self._lines += [json.loads(line) for line in text]
