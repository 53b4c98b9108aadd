"""One table for what relays must refuse: tunnels and agents, each until its tokens have expired."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Tokens lived an hour at most, and were denied for as long as certificates; an hour is enough.
_KEEP_TUNNELS = """
    INSERT INTO denials (subject, user_id, revision, denied_at, denied_until)
    SELECT tunnel_id, user_id, 1, COALESCE(revoked_at, locked_at, created_at), denied_until
    FROM tunnels WHERE denied_until IS NOT NULL
"""
_KEEP_AGENTS = """
    INSERT INTO denials (subject, user_id, revision, denied_at, denied_until)
    SELECT tunnels.tunnel_id || '/' || agents.agent_id, MAX(tunnels.user_id), 1,
           MAX(agents.removed_at), MAX(denied_certificates.denied_until)
    FROM denied_certificates
    JOIN link_keys ON link_keys.certificate_thumbprint = denied_certificates.thumbprint
    JOIN agents ON agents.agent_id = link_keys.agent_id
    JOIN tunnels ON tunnels.tunnel_id = agents.tunnel_id
    WHERE agents.removed_at IS NOT NULL
    GROUP BY tunnels.tunnel_id, agents.agent_id
"""


def upgrade() -> None:
    op.create_table(
        "denials",
        sa.Column("subject", sa.String(length=128), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("denied_at", sa.BigInteger(), nullable=False),
        sa.Column("denied_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_denials")),
    )
    for column in ("user_id", "revision", "denied_at", "denied_until"):
        op.create_index(f"ix_denials_{column}", "denials", [column])
    op.execute(_KEEP_TUNNELS)
    op.execute(_KEEP_AGENTS)
    op.drop_table("denied_certificates")
    # Not as a batch: on SQLite that makes the table again, and to drop it deletes its agents.
    op.drop_column("tunnels", "denied_until")


def downgrade() -> None:
    op.add_column("tunnels", sa.Column("denied_until", sa.BigInteger(), nullable=True))
    op.create_table(
        "denied_certificates",
        sa.Column("thumbprint", sa.String(length=64), nullable=False),
        sa.Column("denied_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("thumbprint", name=op.f("pk_denied_certificates")),
    )
    op.execute(
        "UPDATE tunnels SET denied_until = "
        "(SELECT denials.denied_until FROM denials WHERE denials.subject = tunnels.tunnel_id)"
    )
    op.execute(
        "INSERT INTO denied_certificates (thumbprint, denied_until) "
        "SELECT link_keys.certificate_thumbprint, MAX(denials.denied_until) FROM denials "
        "JOIN agents ON denials.subject = agents.tunnel_id || '/' || agents.agent_id "
        "JOIN link_keys ON link_keys.agent_id = agents.agent_id "
        "GROUP BY link_keys.certificate_thumbprint"
    )
    op.drop_table("denials")
