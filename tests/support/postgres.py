"""A real PostgreSQL server for the whole run, and a database of its own for each test.

It listens on a socket in a folder that only we can enter, so it needs no port and no password.
Durability is switched off: what a test stored need not survive a power cut.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from byoai_gateway.config import DatabaseSection
from byoai_gateway.database import Database

REQUIRED: Final = "BYOAI_TEST_REQUIRE_SERVERS"
_START_S: Final = 30.0
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
        self._count = 0
        self._has_template = False

    def prepare(self) -> None:
        """Make an empty cluster."""
        if self._account is not None:
            shutil.chown(self._folder, self._account)
        self._run(
            "initdb", "--auth=trust", "--no-sync", "--no-instructions", "--encoding=UTF8",
            "--locale=C", f"--username={_SUPERUSER}",
        )  # fmt: skip

    def start(self) -> None:
        """Start it; returns when it takes connections."""
        options = " ".join(
            f"-c {it}" for it in (*_SETTINGS, f"unix_socket_directories={self._folder}")
        )
        log = str(self._folder / "log")
        self._run("pg_ctl", "start", "--wait", "--silent", "-l", log, "-o", options)

    def stop(self) -> None:
        """End it at once, with every connection to it."""
        self._run("pg_ctl", "stop", "--wait", "--silent", "-m", "immediate")

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

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of its programs, as somebody else when we are root: it refuses root."""
        subprocess.run(
            [self._programs / program, "-D", str(self._folder / "data"), *arguments],
            check=True,
            user=self._account,
            extra_groups=None if self._account is None else [],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=_START_S,
        )


@contextmanager
def running_postgres() -> Generator[PostgresServer]:
    """Run a server in a folder of its own; skips the test where there are no programs for it."""
    programs = _programs()
    if programs is None:
        reason = "no PostgreSQL server is installed (initdb on PATH or in /usr/lib/postgresql)"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(reason)
        pytest.skip(reason)
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
