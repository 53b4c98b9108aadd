"""The first schema: tunnels, agents, keys, authorities and sealed secrets."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "authorities",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("certificate_pem", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_authorities")),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    op.create_table(
        "denied_certificates",
        sa.Column("thumbprint", sa.String(length=64), nullable=False),
        sa.Column("denied_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("thumbprint", name=op.f("pk_denied_certificates")),
    )
    op.create_table(
        "secrets",
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("field", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "field", name=op.f("pk_secrets")),
    )
    op.create_index("ix_secrets_key_id", "secrets", ["key_id"], unique=False)
    op.create_table(
        "signing_keys",
        sa.Column("kid", sa.String(length=64), nullable=False),
        sa.Column("public_jwk", sa.JSON(), nullable=False),
        sa.Column("active_from", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_signing_keys")),
    )
    op.create_table(
        "tunnels",
        sa.Column("tunnel_id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("model_name", sa.String(length=200), nullable=False),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("locked_at", sa.BigInteger(), nullable=True),
        sa.Column("denied_until", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("tunnel_id", name=op.f("pk_tunnels")),
    )
    op.create_index(op.f("ix_tunnels_user_id"), "tunnels", ["user_id"], unique=False)
    op.create_table(
        "agents",
        sa.Column("agent_id", sa.String(length=32), nullable=False),
        sa.Column("tunnel_id", sa.String(length=32), nullable=False),
        sa.Column("hostname", sa.String(length=255), nullable=False),
        sa.Column("agent_version", sa.String(length=64), nullable=False),
        sa.Column("end_to_end_pem", sa.Text(), nullable=False),
        sa.Column("previous_end_to_end_pem", sa.Text(), nullable=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("enrolled_at", sa.BigInteger(), nullable=False),
        sa.Column("token_issued_at", sa.BigInteger(), nullable=False),
        sa.Column("token_expires_at", sa.BigInteger(), nullable=False),
        sa.Column("authentication_version", sa.Integer(), nullable=False),
        sa.Column("authentication_fetched_at", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tunnel_id"],
            ["tunnels.tunnel_id"],
            name=op.f("fk_agents_tunnel_id_tunnels"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("agent_id", name=op.f("pk_agents")),
    )
    op.create_index(op.f("ix_agents_tunnel_id"), "agents", ["tunnel_id"], unique=False)
    op.create_table(
        "authentication_keys",
        sa.Column("tunnel_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tunnel_id"],
            ["tunnels.tunnel_id"],
            name=op.f("fk_authentication_keys_tunnel_id_tunnels"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tunnel_id", "version", name=op.f("pk_authentication_keys")),
    )
    op.create_table(
        "join_codes",
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("tunnel_id", sa.String(length=32), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tunnel_id"],
            ["tunnels.tunnel_id"],
            name=op.f("fk_join_codes_tunnel_id_tunnels"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("secret_hash", name=op.f("pk_join_codes")),
    )
    op.create_index(op.f("ix_join_codes_tunnel_id"), "join_codes", ["tunnel_id"], unique=False)
    op.create_table(
        "link_keys",
        sa.Column("agent_id", sa.String(length=32), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("certificate_thumbprint", sa.String(length=64), nullable=False),
        sa.Column("certificate_expires_at", sa.BigInteger(), nullable=False),
        sa.Column("confirmed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["agent_id"],
            ["agents.agent_id"],
            name=op.f("fk_link_keys_agent_id_agents"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("agent_id", "generation", name=op.f("pk_link_keys")),
    )


def downgrade() -> None:
    op.drop_table("link_keys")
    op.drop_index(op.f("ix_join_codes_tunnel_id"), table_name="join_codes")
    op.drop_table("join_codes")
    op.drop_table("authentication_keys")
    op.drop_index(op.f("ix_agents_tunnel_id"), table_name="agents")
    op.drop_table("agents")
    op.drop_index(op.f("ix_tunnels_user_id"), table_name="tunnels")
    op.drop_table("tunnels")
    op.drop_table("signing_keys")
    op.drop_index("ix_secrets_key_id", table_name="secrets")
    op.drop_table("secrets")
    op.drop_table("denied_certificates")
    op.drop_table("counters")
    op.drop_table("authorities")
