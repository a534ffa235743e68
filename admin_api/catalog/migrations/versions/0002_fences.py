"""Fences: attempts told apart, numbers never given twice, whose a store is."""

import uuid

import sqlalchemy as sa
from alembic import op

from admin_api.catalog.models import ByteText, RowId, UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """To this version; what is recorded already stays so."""
    op.add_column("product", sa.Column("attempt", sa.Text(), nullable=False, server_default=""))
    op.add_column(
        "product", sa.Column("recorded", sa.Integer(), nullable=False, server_default="0")
    )
    op.add_column("product", sa.Column("successor", sa.BigInteger(), nullable=True))
    op.execute("UPDATE product SET recorded = number")
    op.create_index("product_directory", "product", ["directory"], unique=False)
    op.create_table(
        "forgotten",
        sa.Column("name", ByteText, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "file_claim",
        sa.Column("product_pk", RowId, nullable=False),
        sa.Column("path", ByteText, nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("touched_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["product_pk"], ["product.pk"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("product_pk", "path"),
    )
    op.create_index("ix_file_claim_owner", "file_claim", ["owner"], unique=False)
    op.create_table(
        "multipart",
        sa.Column("mount", ByteText, nullable=False),
        sa.Column("ticket", ByteText, nullable=False),
        sa.Column("key", ByteText, nullable=False),
        sa.Column("begun_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("mount", "ticket"),
    )
    op.create_index("ix_multipart_begun_at", "multipart", ["begun_at"], unique=False)
    identity = op.create_table(
        "identity",
        sa.Column("catalog_id", ByteText, nullable=False),
        sa.PrimaryKeyConstraint("catalog_id"),
    )
    op.bulk_insert(identity, [{"catalog_id": uuid.uuid4().hex}])
    op.create_table(
        "store",
        sa.Column("mount", ByteText, nullable=False),
        sa.Column("store_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("mount"),
    )


def downgrade() -> None:
    """Back from it."""
    for table in ("store", "identity", "multipart", "file_claim", "forgotten"):
        op.drop_table(table)
    op.drop_index("product_directory", "product")
    for column in ("successor", "recorded", "attempt"):
        op.drop_column("product", column)
