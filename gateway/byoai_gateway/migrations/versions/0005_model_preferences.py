"""Which model users prefer at their own server, and whether it answers in place of any other."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("preferences") as table:
        table.add_column(sa.Column("self_hosted_model", sa.String(length=200), nullable=True))
        table.add_column(
            sa.Column(
                "always_use_my_model", sa.Boolean(), nullable=False, server_default=sa.false()
            )
        )


def downgrade() -> None:
    with op.batch_alter_table("preferences") as table:
        table.drop_column("always_use_my_model")
        table.drop_column("self_hosted_model")
