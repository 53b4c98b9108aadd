"""A real redis-server on loopback, started, halted and ended by a test."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from byoai_shared.secret import Secret
from demo.lifeline import Lifeline

PASSWORD: Final = "not a word to be logged"
_BINARIES: Final = ("redis-server", "valkey-server")
_START_S: Final = 60.0


class RedisServer:
    """One server; its port stays the same when it is started again."""

    def __init__(self, binary: str, directory: Path) -> None:
        self._binary = binary
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = Lifeline()
        self.port = _free_port()

    @property
    def address(self) -> Secret:
        """For `limits.store`."""
        password = PASSWORD.replace(" ", "%20")
        return Secret(f"redis://:{password}@127.0.0.1:{self.port}/0")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = self._directory / "redis.conf"
        settings.write_text(
            f'port {self.port}\nbind 127.0.0.1\nsave ""\nappendonly no\n'
            f'dir "{self._directory}"\nrequirepass "{PASSWORD}"\n'
        )
        with self._lifeline.tied((self._binary, str(settings))) as (command, stdin):
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """End it; what it counted is gone."""
        if self._process is None:
            return
        self.go_on()
        self._process.terminate()
        self._process.wait(timeout=_START_S)
        self._lifeline.cut()
        self._process = None

    def halt(self) -> None:
        """Let it answer nothing, with its connections open."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "not started"
        os.kill(self._process.pid, number)

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(100).startswith(b"-NOAUTH"):
                        return
            except OSError:
                pass
            assert self._process is not None
            assert self._process.poll() is None, "redis-server ended by itself"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)


def redis_program() -> str:
    """Its path; where there is none, the test is skipped.

    With `BYOAI_TEST_REQUIRE_SERVERS=1` a missing program is a failure.
    """
    program = next((found for name in _BINARIES if (found := shutil.which(name))), None)
    if program is not None:
        return program
    if os.environ.get("BYOAI_TEST_REQUIRE_SERVERS") == "1":
        pytest.fail("redis-server is not installed")
    pytest.skip("redis-server is not installed")


@contextmanager
def redis_server(directory: Path) -> Generator[RedisServer]:
    """Serve from a folder of its own; where no program is, the test is skipped."""
    server = RedisServer(redis_program(), directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    """A port of the kernel's choice; the server cannot say which one it got for port 0."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
