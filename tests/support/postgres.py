"""A real PostgreSQL server for the whole run, and a database of its own for each test.

It listens on a socket in a folder that only we can enter, so it needs no port and no password.
Durability is switched off: what a test stored need not survive a power cut. It ends with this
process: each of its own processes leaves the group that a lifeline reaches, so the last signal is
the one for which the server ends them all.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, NoReturn

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from byoai_gateway.config import DatabaseSection
from byoai_gateway.database import Database
from demo.lifeline import Lifeline, run

REQUIRED: Final = "BYOAI_TEST_REQUIRE_SERVERS"
_LONGEST_S: Final = 60.0
_IMMEDIATE_SHUTDOWN: Final = signal.SIGQUIT
_SUPERUSER: Final = "postgres"
_TEMPLATE: Final = "migrated"
_SETTINGS: Final = (
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "fsync=off",
    "full_page_writes=off",
    "autovacuum=off",
    "shared_buffers=16MB",
    "max_connections=60",
    "max_wal_senders=0",
    "wal_level=minimal",
)


class PostgresServer:
    """A server that can be stopped and started again."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder = folder
        self._programs = programs
        self._account = _account()
        self._lifeline = Lifeline(_IMMEDIATE_SHUTDOWN)
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0
        self._has_template = False

    def prepare(self) -> None:
        """Make an empty cluster."""
        if self._account is not None:
            shutil.chown(self._folder, self._account)
        initdb = (
            "initdb", "--auth=trust", "--no-sync", "--no-instructions", "--encoding=UTF8",
            "--locale=C", f"--username={_SUPERUSER}",
        )  # fmt: skip
        run(self._command(*initdb), timeout_s=_LONGEST_S, user=self._account, cwd=self._folder)

    def start(self) -> None:
        """Start it; returns when it takes connections."""
        settings = (*_SETTINGS, f"unix_socket_directories={self._folder}")
        command = self._command("postgres", *(f"--{it}" for it in settings))
        log = self._folder / "log"
        with log.open("ab") as output, self._lifeline.tied(command) as (tied, stdin):
            self._process = subprocess.Popen(
                tied,
                user=self._account,
                extra_groups=None if self._account is None else [],
                cwd=self._folder,
                stdin=stdin,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + _LONGEST_S
        while not self._is_ready(self._process.pid):
            assert self._process.poll() is None, f"PostgreSQL ended by itself: {log.read_text()}"
            assert time.monotonic() < deadline, f"PostgreSQL does not start: {log.read_text()}"
            time.sleep(0.01)

    def stop(self) -> None:
        """End it at once, with every connection to it."""
        if self._process is None:
            return
        self._process.send_signal(_IMMEDIATE_SHUTDOWN)
        self._process.wait(timeout=_LONGEST_S)
        self._lifeline.cut()
        self._process = None

    @asynccontextmanager
    async def frozen(self) -> AsyncGenerator[None]:
        """Let it answer nothing meanwhile, with its connections open and new ones taken."""
        assert self._process is not None, "not started"
        pids = (self._process.pid, *await self._backends())
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    async def _backends(self) -> list[int]:
        """The processes that serve connections; not ours, which ends with this."""
        engine = create_async_engine(self.settings("postgres").url, poolclass=NullPool)
        async with engine.connect() as connection:
            found = await connection.exec_driver_sql(
                "SELECT pid FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            pids = [int(pid) for pid in found.scalars()]
        await engine.dispose()
        return pids

    def settings(self, name: str) -> DatabaseSection:
        """How to reach one of its databases."""
        return DatabaseSection(url=f"postgresql+asyncpg://{_SUPERUSER}@/{name}?host={self._folder}")

    @asynccontextmanager
    async def database(self, template: str = _TEMPLATE) -> AsyncGenerator[DatabaseSection]:
        """Make a database for one test and drop it afterwards, whoever is still connected."""
        if template == _TEMPLATE:
            await self._make_template()
        self._count += 1
        name = f"test_{self._count}"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.settings(name)
        finally:
            await self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def _make_template(self) -> None:
        """Bring a database up to date once, for all tests to copy."""
        if self._has_template:
            return
        self._has_template = True
        await self._execute(f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
        await (await Database.open(self.settings(_TEMPLATE))).close()

    async def _execute(self, statement: str) -> None:
        """Do what cannot be done inside a transaction."""
        engine = create_async_engine(
            self.settings("postgres").url, isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        async with engine.connect() as connection:
            await connection.exec_driver_sql(statement)
        await engine.dispose()

    def _command(self, program: str, *arguments: str) -> list[str]:
        """One of its programs on its folder."""
        return [str(self._programs / program), "-D", str(self._folder / "data"), *arguments]

    def _is_ready(self, pid: int) -> bool:
        """What it says in its pid file, which is where its own `pg_ctl` looks."""
        try:
            lines = (self._folder / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


@contextmanager
def running_postgres() -> Generator[PostgresServer]:
    """Run a server in a folder of its own; skips the test where there are no programs for it."""
    programs = postgres_programs()
    folder = Path(tempfile.mkdtemp(prefix="byoai-pg-"))
    server = PostgresServer(folder, programs)
    try:
        server.prepare()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def postgres_programs() -> Path:
    """The folder of the server's programs; where there are none, the test is skipped.

    With `BYOAI_TEST_REQUIRE_SERVERS=1` their absence is a failure.
    """
    programs = _programs()
    if programs is None:
        _do_without("no PostgreSQL server is installed (initdb on PATH or in /usr/lib/postgresql)")
    return programs


def require_programs(path: str, *names: str) -> None:
    """Skip the test where a program is not on a PATH, or fail as `postgres_programs` does."""
    missing = [name for name in names if shutil.which(name, path=path) is None]
    if missing:
        _do_without(f"not installed: {', '.join(missing)}")


def _do_without(reason: str) -> NoReturn:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def _programs() -> Path | None:
    """The folder of the newest server's programs; Debian keeps them off the PATH."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(found, key=lambda it: int(it.parents[1].name), default=None)
    return newest.parent if newest is not None else None


def _account() -> int | None:
    """Whom to run the server as; None for ourselves."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
    return known.get(_SUPERUSER, known["nobody"])
