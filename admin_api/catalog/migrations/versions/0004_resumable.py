"""Files of upload sessions that are sent in pieces."""

import sqlalchemy as sa
from alembic import op

from admin_api.catalog.models import ByteText, RowId

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "resumable",
        sa.Column("product_pk", RowId, nullable=False),
        sa.Column("path", ByteText, nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text()),
        sa.Column("md5", sa.Text()),
        sa.PrimaryKeyConstraint("product_pk", "path"),
        sa.ForeignKeyConstraint(["product_pk"], ["product.pk"], ondelete="CASCADE"),
    )
    op.create_table(
        "piece",
        sa.Column("product_pk", RowId, nullable=False),
        sa.Column("path", ByteText, nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("key", ByteText, nullable=False),
        sa.Column("size", sa.BigInteger()),
        sa.PrimaryKeyConstraint("product_pk", "path", "start", "key"),
        sa.ForeignKeyConstraint(["product_pk"], ["product.pk"], ondelete="CASCADE"),
    )
