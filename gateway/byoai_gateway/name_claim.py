"""Finds another gateway that runs under this one's name.

The name is in the gateway's certificate, in the relays' logs and in agents' logs, so two gateways
of one name cannot be told apart. On PostgreSQL each gateway labels a connection with its name and
a random instance id, and looks for other labels of its name: they end with their process. On
SQLite, where all gateways are on one host, each locks a file beside the database; the kernel
releases it when the process ends. Neither needs a table.

It refuses nothing: during a restart two processes of one name overlap.
"""

import errno
import fcntl
import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

from sqlalchemy import text
from sqlalchemy.engine import make_url

from byoai_gateway.config import GatewayConfig
from byoai_gateway.database import Database
from byoai_shared.logs import get_logger

REFRESH_S: Final = 30.0
"""Between two looks; a label that was not used for three times as long is not counted."""
_MAX_LABEL: Final = 63
"""NAMEDATALEN of PostgreSQL, less one."""
_LABEL: Final = text("SELECT set_config('application_name', :label, false)")
_OTHERS: Final = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND application_name LIKE :prefix AND application_name NOT LIKE :own "
    "AND state_change > now() - make_interval(secs => :seconds)"
)

log = get_logger("gateway")


class NameClaim:
    """A claim to a gateway's name; call `refresh` now and then, and `close` it."""

    def __init__(self, config: GatewayConfig, database: Database) -> None:
        self._name = config.gateway.name
        self._database = database
        self._lock_path = _lock_path(config)
        self._lock: int | None = None
        digest = hashlib.sha256(self._name.encode()).hexdigest()[:8]
        self._prefix = f"byoai-gateway {digest}."
        self._own = f"{self._prefix}{secrets.token_hex(4)} "
        self.is_shared = False

    @property
    def warning(self) -> str | None:
        """What to tell operators; None while the name is this gateway's alone."""
        if not self.is_shared:
            return None
        return (
            f"gateway.name: another gateway named {self._name!r} uses the same database; give each "
            "gateway its own name"
        )

    async def refresh(self) -> None:
        """Claim the name, and look for others that do.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        was_shared = self.is_shared
        if self._database.dialect.name == "postgresql":
            self.is_shared = await self._has_namesakes()
        else:
            self.is_shared = not self._locked()
        if self.is_shared and not was_shared:
            log.warning(
                "gateway.name_shared",
                setting="gateway.name",
                name=self._name,
                reason="another gateway of this name uses the same database",
                next="give each gateway its own gateway.name; during a restart, wait until the "
                "older process has ended",
            )
        elif was_shared and not self.is_shared:
            log.info("gateway.name_unique", name=self._name)

    def close(self) -> None:
        """Give up the claim."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _has_namesakes(self) -> bool:
        label = (self._own + self._name)[:_MAX_LABEL]
        values = {"prefix": f"{self._prefix}%", "own": f"{self._own}%", "seconds": 3 * REFRESH_S}
        async with self._database.reading() as connection:
            await connection.execute(_LABEL, {"label": label})
            return bool((await connection.execute(_OTHERS, values)).scalar_one())

    def _locked(self) -> bool:
        """Whether this process has the lock, or there is no place for one."""
        if self._lock is not None:
            return True
        if self._lock_path is None:
            return True
        try:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return True  # a folder that cannot be written to holds no SQLite in use
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            # Where the file system knows no locks, nothing is known of others.
            return error.errno not in {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
        self._lock = descriptor
        return True


def _lock_path(config: GatewayConfig) -> Path | None:
    """Return the file to lock; None for a database in memory, which is this process's alone."""
    file = make_url(config.database.url).database
    # Not the database's own file: closing it would drop SQLite's locks of this process.
    is_file = file is not None and file not in {"", ":memory:"}
    return Path(f"{file}.{config.gateway.name}.lock") if is_file else None
