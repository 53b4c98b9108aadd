"""Who did what the audit log says, operators among them, and which fields were emptied."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("audit_log") as table:
        table.alter_column("user_id", existing_type=sa.String(length=255), nullable=True)
        table.add_column(
            sa.Column("actor", sa.String(length=16), nullable=False, server_default="user")
        )
        table.add_column(sa.Column("emptied", sa.JSON(), nullable=True))
    op.execute("UPDATE audit_log SET actor = 'agent' WHERE action = 'agent.joined'")
    op.execute("UPDATE audit_log SET actor = 'gateway' WHERE action = 'tunnel.locked'")
    with op.batch_alter_table("audit_log") as table:
        table.alter_column(
            "actor", existing_type=sa.String(length=16), nullable=False, server_default=None
        )


def downgrade() -> None:
    # What operators did has no place in the older table.
    op.execute("DELETE FROM audit_log WHERE user_id IS NULL")
    with op.batch_alter_table("audit_log") as table:
        table.drop_column("emptied")
        table.drop_column("actor")
        table.alter_column("user_id", existing_type=sa.String(length=255), nullable=False)
