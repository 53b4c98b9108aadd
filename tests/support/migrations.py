"""The gateway's tables as they are today, and older states of them."""

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine

from byoai_gateway import schema


@cache
def migrated_sqlite_file() -> bytes:
    """The bytes of an SQLite file with empty tables: all migrations run once, not once a test."""
    with closing(sqlite3.connect(":memory:")) as database:
        engine = create_engine("sqlite://", creator=lambda: database)
        with engine.begin() as connection:
            upgrade_to(connection, "head")
        return database.serialize()


def downgrade_to(connection: Connection, revision: str) -> None:
    """Take the tables back to a revision."""
    command.downgrade(_settings(connection), revision)


def upgrade_to(connection: Connection, revision: str) -> None:
    """Take the tables forward to a revision."""
    command.upgrade(_settings(connection), revision)


def _settings(connection: Connection) -> Config:
    settings = Config()
    migrations = Path(schema.__file__).with_name("migrations")
    settings.set_main_option("script_location", str(migrations))
    settings.attributes["connection"] = connection
    return settings
