"""The table of denials: from the tables before it, and back."""

from sqlalchemy import select, text

from byoai_gateway.config import DatabaseSection
from byoai_gateway.database import Database
from byoai_gateway.schema import agents, denials
from support.migrations import downgrade_to, upgrade_to

_TUNNEL = (
    "INSERT INTO tunnels (tunnel_id, user_id, model_name, capabilities, created_at, revoked_at, "
    "locked_at, denied_until) VALUES "
)
_AGENT = (
    "INSERT INTO agents (agent_id, tunnel_id, hostname, agent_version, end_to_end_pem, "
    "generation, enrolled_at, token_issued_at, token_expires_at, authentication_version, "
    "authentication_fetched_at, removed_at) VALUES "
)
_KEY = (
    "INSERT INTO link_keys (agent_id, generation, public_key, certificate_thumbprint, "
    "certificate_expires_at) VALUES "
)
_BEFORE = (
    _TUNNEL + "('revoked', 'alice', 'm', '[]', 1, 5, NULL, 900)",
    _TUNNEL + "('locked', 'bob', 'm', '[]', 1, NULL, 6, 901)",
    _TUNNEL + "('kept', 'carol', 'm', '[]', 1, NULL, NULL, NULL)",
    _AGENT + "('gone', 'kept', 'h', '1', 'p', 2, 2, 2, 3, 1, 2, 7)",
    _AGENT + "('here', 'kept', 'h', '1', 'p', 1, 2, 2, 3, 1, 2, NULL)",
    _KEY + "('gone', 1, '', 'first', 10)",
    _KEY + "('gone', 2, '', 'second', 20)",
    _KEY + "('here', 1, '', 'third', 30)",
    "INSERT INTO denied_certificates (thumbprint, denied_until) VALUES ('first', 902)",
    "INSERT INTO denied_certificates (thumbprint, denied_until) VALUES ('second', 903)",
)


async def test_what_was_denied_stays_denied(database: DatabaseSection) -> None:
    opened = await Database.open(database)
    async with opened.writing() as connection:
        await connection.run_sync(downgrade_to, "0005")
        for statement in _BEFORE:
            await connection.execute(text(statement))
        await connection.run_sync(upgrade_to, "0006")
        rows = await connection.execute(select(denials).order_by(denials.c.subject))
        assert [tuple(row) for row in rows] == [
            ("kept/gone", "carol", 1, 7, 903),
            ("locked", "bob", 1, 6, 901),
            ("revoked", "alice", 1, 5, 900),
        ]
        remaining = await connection.execute(select(agents.c.agent_id).order_by(agents.c.agent_id))
        assert list(remaining.scalars()) == ["gone", "here"]
        await connection.run_sync(downgrade_to, "0005")
        certificates = await connection.execute(
            text("SELECT thumbprint, denied_until FROM denied_certificates ORDER BY thumbprint")
        )
        assert [tuple(row) for row in certificates] == [("first", 903), ("second", 903)]
        tunnels = await connection.execute(
            text("SELECT denied_until FROM tunnels ORDER BY tunnel_id")
        )
        assert [row[0] for row in tunnels] == [None, 901, 900]
    await opened.close()
