"""An index for each query that is made again and again, however many rows there are."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_join_codes_expires_at", "join_codes", ["expires_at"])
    op.create_index("ix_secrets_key_id_owner_field", "secrets", ["key_id", "owner", "field"])
    op.drop_index("ix_secrets_key_id", table_name="secrets")


def downgrade() -> None:
    op.create_index("ix_secrets_key_id", "secrets", ["key_id"])
    op.drop_index("ix_secrets_key_id_owner_field", table_name="secrets")
    op.drop_index("ix_join_codes_expires_at", table_name="join_codes")
