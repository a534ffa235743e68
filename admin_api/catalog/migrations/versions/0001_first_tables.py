"""The first tables: products, files, upload sessions, events, idempotency keys."""

import sqlalchemy as sa
from alembic import op

from admin_api.catalog.models import ByteText, RowId, UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "event",
        sa.Column("number", RowId, autoincrement=False, nullable=False),
        sa.Column("time", UtcDateTime(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("product_id", ByteText, nullable=True),
        sa.Column("product_name", ByteText, nullable=True),
        sa.Column("mission", ByteText, nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index("ix_event_product_id", "event", ["product_id"], unique=False)
    op.create_table(
        "idempotency",
        sa.Column("subject", ByteText, nullable=False),
        sa.Column("key", ByteText, nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("body", sa.JSON(), nullable=True),
        sa.Column("touched_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "key"),
    )
    op.create_index("ix_idempotency_touched_at", "idempotency", ["touched_at"], unique=False)
    op.create_table(
        "product",
        sa.Column("pk", RowId, autoincrement=True, nullable=False),
        sa.Column("id", ByteText, nullable=False),
        sa.Column("name", ByteText, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", ByteText, nullable=False),
        sa.Column("mission", ByteText, nullable=True),
        sa.Column("product_type", ByteText, nullable=True),
        sa.Column("sensing_start", UtcDateTime(), nullable=True),
        sa.Column("sensing_stop", UtcDateTime(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("file_count", sa.Integer(), nullable=False),
        sa.Column("list_digest", sa.Text(), nullable=True),
        sa.Column("directory", ByteText, nullable=False),
        sa.Column("registered", sa.Boolean(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("touched_at", UtcDateTime(), nullable=False),
        sa.Column("available_at", UtcDateTime(), nullable=True),
        sa.Column("removed_at", UtcDateTime(), nullable=True),
        sa.Column("removed_by", sa.Text(), nullable=True),
        sa.Column("removed_cause", sa.Text(), nullable=True),
        sa.Column("retention_until", UtcDateTime(), nullable=True),
        sa.Column("hold_reason", sa.Text(), nullable=True),
        sa.Column("hold_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("name", "generation"),
    )
    op.create_index("ix_product_id", "product", ["id"], unique=False)
    op.create_index(
        "one_available_per_name",
        "product",
        ["name"],
        unique=True,
        sqlite_where=sa.text("state = 'available'"),
        postgresql_where=sa.text("state = 'available'"),
    )
    op.create_index(
        "one_committing_per_name",
        "product",
        ["name"],
        unique=True,
        sqlite_where=sa.text("state = 'committing'"),
        postgresql_where=sa.text("state = 'committing'"),
    )
    op.create_index(
        "product_listing",
        "product",
        ["state", "mission", "product_type", "pk", "size", "file_count"],
        unique=False,
    )
    op.create_index("product_retention", "product", ["state", "retention_until"], unique=False)
    op.create_index("product_sensing", "product", ["state", "sensing_start"], unique=False)
    op.create_index("product_touched", "product", ["state", "touched_at"], unique=False)
    op.create_table(
        "file",
        sa.Column("product_pk", RowId, nullable=False),
        sa.Column("path", ByteText, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("md5", sa.Text(), nullable=False),
        sa.Column("key", ByteText, nullable=False),
        sa.ForeignKeyConstraint(["product_pk"], ["product.pk"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("product_pk", "path"),
        sa.UniqueConstraint("key"),
    )
    op.create_table(
        "upload",
        sa.Column("id", ByteText, nullable=False),
        sa.Column("product_pk", RowId, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["product_pk"], ["product.pk"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("product_pk"),
    )
    op.create_index("ix_upload_expires_at", "upload", ["expires_at"], unique=False)


def downgrade() -> None:
    """Back from it."""
    for table in ("upload", "file", "product", "idempotency", "event"):
        op.drop_table(table)
