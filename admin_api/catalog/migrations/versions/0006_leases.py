"""Leases on products, and keys that are no product's file: not yet, or no longer."""

import sqlalchemy as sa
from alembic import op

from admin_api.catalog.models import ByteText, RowId, UtcDateTime

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """To this version."""
    op.add_column("product", sa.Column("leased_until", UtcDateTime()))
    op.create_table(
        "lease",
        sa.Column("id", ByteText, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_lease_expires_at", "lease", ["expires_at"])
    op.create_table(
        "leased_product",
        sa.Column("lease_id", ByteText, nullable=False),
        sa.Column("product_pk", RowId, nullable=False),
        sa.PrimaryKeyConstraint("lease_id", "product_pk"),
        sa.ForeignKeyConstraint(["lease_id"], ["lease.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["product_pk"], ["product.pk"], ondelete="CASCADE"),
    )
    op.create_index("ix_leased_product_product_pk", "leased_product", ["product_pk"])
    op.create_table(
        "loose_key",
        sa.Column("key", ByteText, nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("touched_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_loose_key_owner", "loose_key", ["owner"])
    op.create_index("ix_loose_key_touched_at", "loose_key", ["touched_at"])
