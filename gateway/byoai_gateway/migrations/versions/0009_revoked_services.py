"""Certificates of relays and gateways that an operator has revoked."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "revoked_services",
        sa.Column("service", sa.String(length=128), nullable=False),
        sa.Column("issued_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("service", name=op.f("pk_revoked_services")),
    )


def downgrade() -> None:
    op.drop_table("revoked_services")
