"""Agents are locked, not tunnels; the runs of an agent's program are remembered."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


_LOCK_AGENTS = """
    UPDATE agents SET locked_at = (
        SELECT tunnels.locked_at FROM tunnels WHERE tunnels.tunnel_id = agents.tunnel_id
    )
    WHERE removed_at IS NULL AND tunnel_id IN (
        SELECT tunnel_id FROM tunnels
        WHERE tunnels.locked_at IS NOT NULL AND tunnels.revoked_at IS NULL
    )
"""
_DENY_AGENTS = """
    INSERT INTO denials (subject, user_id, revision, denied_at, denied_until)
    SELECT agents.tunnel_id || '/' || agents.agent_id, denials.user_id,
           (SELECT COALESCE(MAX(value), 1) FROM counters WHERE name = 'trust'),
           denials.denied_at, denials.denied_until
    FROM denials JOIN agents ON agents.tunnel_id = denials.subject
    WHERE agents.locked_at IS NOT NULL
"""
_ALLOW_TUNNELS = """
    UPDATE denials SET denied_until = 0,
        revision = (SELECT COALESCE(MAX(value), 1) FROM counters WHERE name = 'trust')
    WHERE subject IN (
        SELECT tunnel_id FROM tunnels
        WHERE tunnels.locked_at IS NOT NULL AND tunnels.revoked_at IS NULL
    )
"""


def upgrade() -> None:
    # Not as a batch: on SQLite that makes the table again, and to drop it deletes its agents' keys.
    op.add_column("agents", sa.Column("old_key_used_at", sa.BigInteger(), nullable=True))
    op.add_column("agents", sa.Column("old_key_host", sa.String(length=255), nullable=True))
    op.add_column("agents", sa.Column("locked_at", sa.BigInteger(), nullable=True))
    op.add_column("agents", sa.Column("cleared_generation", sa.Integer(), nullable=True))
    op.create_table(
        "agent_instances",
        sa.Column("agent_id", sa.String(length=32), nullable=False),
        sa.Column("instance", sa.String(length=64), nullable=False),
        sa.Column("hostname", sa.String(length=255), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"],
            ["agents.agent_id"],
            name=op.f("fk_agent_instances_agent_id_agents"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("agent_id", "instance", name=op.f("pk_agent_instances")),
    )
    _lock_the_agents_of_locked_tunnels()


def _lock_the_agents_of_locked_tunnels() -> None:
    """Which agent it was is not known; each renews its certificate once it is unlocked."""
    op.execute(_LOCK_AGENTS)
    op.execute("UPDATE counters SET value = value + 1 WHERE name = 'trust'")
    op.execute(_DENY_AGENTS)
    op.execute(_ALLOW_TUNNELS)
    op.execute(
        "UPDATE link_keys SET certificate_expires_at = 0 "
        "WHERE agent_id IN (SELECT agent_id FROM agents WHERE locked_at IS NOT NULL)"
    )
    op.execute(
        "UPDATE tunnels SET locked_at = NULL WHERE locked_at IS NOT NULL AND revoked_at IS NULL"
    )


def downgrade() -> None:
    op.drop_table("agent_instances")
    # Not as a batch, for the same reason.
    for column in ("cleared_generation", "locked_at", "old_key_host", "old_key_used_at"):
        op.drop_column("agents", column)
