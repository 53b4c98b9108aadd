"""Revoked tunnels cost nothing when a user's tunnels are counted, and are found when they are old.

The index by user leaves them out; all queries by user ask for tunnels that are not revoked.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_LIVE = sa.text("revoked_at IS NULL")


def upgrade() -> None:
    op.create_index(
        "ix_tunnels_live_user_id",
        "tunnels",
        ["user_id"],
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )
    op.create_index("ix_tunnels_revoked_at", "tunnels", ["revoked_at"])
    op.drop_index("ix_tunnels_user_id", table_name="tunnels")


def downgrade() -> None:
    op.create_index("ix_tunnels_user_id", "tunnels", ["user_id"])
    op.drop_index("ix_tunnels_revoked_at", table_name="tunnels")
    op.drop_index("ix_tunnels_live_user_id", table_name="tunnels")
