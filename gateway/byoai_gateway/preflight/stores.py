"""Tries what the gateway keeps or looks up elsewhere: database, counters, the users' keys.

It changes nothing: no table is made or brought up to date, no key file written.
"""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from sqlalchemy import inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from byoai_gateway.config import DatabaseSection, LimitsSection, VaultSection
from byoai_gateway.engines import DatabaseError, make_engine
from byoai_gateway.jwks import NO_USABLE_KEY, JwksUnavailable, fetch_keys
from byoai_gateway.preflight.findings import Finding, doubtful, failed, passed
from byoai_gateway.rate_windows import Store, StoreAwayError, StoreWindows
from byoai_shared.private_files import NotPrivate, read_key_file

_URL: Final = "database.url"
_WRONG_PASSWORD: Final = frozenset({"28P01", "28000"})
_NO_SUCH_DATABASE: Final = "3D000"


async def check_database(section: DatabaseSection) -> Sequence[Finding]:
    """Connect, and look whether a gateway has made its tables."""
    if (missing := _missing_file(section)) is not None:
        return (missing,)
    try:
        engine = make_engine(section, may_create=False)
    except DatabaseError as error:
        return (failed(_URL, str(error), "correct database.url"),)
    try:
        async with engine.connect() as connection:
            has_tables = await connection.run_sync(
                lambda it: inspect(it).has_table("alembic_version")
            )
    except Exception as error:  # noqa: BLE001 -- drivers raise what they like without a connection
        return (_of_database_error(error),)
    finally:
        await engine.dispose()
    kind = engine.dialect.name
    found = "has a gateway's tables" if has_tables else "is empty: the first start makes the tables"
    return (passed(_URL, f"the {kind} database answers and {found}"),)


async def check_store(section: LimitsSection) -> Sequence[Finding]:
    """Count once in the shared store, as each request does."""
    if section.store is None:
        return ()
    store = Store(section.store)
    try:
        await StoreWindows(store, "trial", 1_000_000).hit("gateway")
    except StoreAwayError as error:
        fix = (
            "correct the user name and password in limits.store"
            if error.is_refused
            else "see that the store runs and that limits.store leads to it"
        )
        return (failed("limits.store", f"the store cannot count: {error}", fix),)
    finally:
        await store.close()
    return (passed("limits.store", "the store counts"),)


async def check_jwks(url: str | None) -> Sequence[Finding]:
    """Fetch the keys that users' tokens are checked with."""
    setting = "users.jwks_url"
    if url is None:
        return ()
    try:
        found = await fetch_keys(url)
    except JwksUnavailable as error:
        fix = "see that the application runs and that users.jwks_url leads to its JWKS"
        return (failed(setting, str(error), fix),)
    if not found.keys:
        return (failed(setting, NO_USABLE_KEY, "publish such a key in the application's JWKS"),)
    return (passed(setting, f"the address answers; usable keys: {len(found.keys)}"),)


async def check_vault(section: VaultSection) -> Sequence[Finding]:
    """Look whether the file with the key-encryption keys is there and can be read."""
    setting, path = "vault.key_file", section.key_file
    if section.keys is not None:
        return (passed("vault.keys", "the keys are in the settings"),)
    if not path.exists():
        fix = "if this gateway has run before, put its key file back: without it no secret opens"
        return (doubtful(setting, f"{path} does not exist; the first start makes it", fix),)
    try:
        read_key_file(path)
    except NotPrivate as error:
        return (failed(setting, str(error), "run the command above, or replace the key"),)
    except OSError as error:
        found = f"{path} cannot be read: {error.strerror}"
        return (failed(setting, found, "give the gateway's user the right to read it"),)
    return (passed(setting, f"{path} can be read"),)


def _missing_file(section: DatabaseSection) -> Finding | None:
    """Explain that the file of an SQLite database is not there; None if it is, or needs none."""
    url = make_url(section.url)
    path = Path(url.database or "")
    if url.get_backend_name() != "sqlite" or path.is_file():
        return None
    shown = path.absolute()
    if not path.name or not path.parent.is_dir():
        found = f"the folder of {shown} does not exist"
        return failed(_URL, found, "make the folder, or correct database.url")
    return doubtful(
        _URL,
        f"{shown} does not exist; the first start makes it",
        "if this gateway has run before, check the path, and the folder in which you run this",
    )


def _of_database_error(error: Exception) -> Finding:
    """Explain an error without its text, which may quote the address."""
    cause = _cause(error)
    state: object = getattr(cause, "sqlstate", None)
    if state in _WRONG_PASSWORD:
        found, fix = "the database refuses the user name or password", "correct database.password"
        return failed("database.password", found, fix)
    if state == _NO_SUCH_DATABASE:
        found = "the server has no database of the name in database.url"
        return failed(_URL, found, "create it, or correct database.url")
    match cause:
        case socket.gaierror():
            found, fix = "the host name does not resolve", "check the host in database.url"
        case ConnectionRefusedError():
            found, fix = "the connection is refused", "start the database, or check host and port"
        case TimeoutError():
            found, fix = "the database did not answer in time", "check host, port and firewall"
        case _:
            found = f"the database cannot be used ({type(cause).__name__})"
            fix = "check database.url, and the database's log"
    return failed(_URL, found, fix)


def _cause(error: Exception) -> BaseException:
    """What the driver raised."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        original: Any = error.orig
        return cast("BaseException", original.__cause__ or original)
    return error
