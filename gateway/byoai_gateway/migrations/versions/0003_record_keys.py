"""A key of its own for each usage record, so that none is written twice."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INDEX = "ix_usage_records_record_key"


def upgrade() -> None:
    op.add_column("usage_records", sa.Column("record_key", sa.String(length=32), nullable=True))
    op.create_index(_INDEX, "usage_records", ["record_key"], unique=True)


def downgrade() -> None:
    op.drop_index(_INDEX, table_name="usage_records")
    op.drop_column("usage_records", "record_key")
