"""Older states of the gateway's tables."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from byoai_gateway import schema


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
