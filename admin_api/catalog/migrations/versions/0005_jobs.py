"""Bulk jobs: jobs, their chunks and items."""

import sqlalchemy as sa
from alembic import op

from admin_api.catalog.models import ByteText, RowId, UtcDateTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "job",
        sa.Column("pk", RowId, primary_key=True, autoincrement=True),
        sa.Column("id", ByteText, nullable=False, unique=True),
        sa.Column("kind", ByteText, nullable=False),
        sa.Column("state", ByteText, nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("cancelled", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("concurrency", sa.Integer()),
        sa.Column("subject", ByteText, nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("missions", sa.JSON()),
        sa.Column("request_id", sa.Text()),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("ended_at", UtcDateTime()),
        sa.Column("served_at", UtcDateTime(), nullable=False),
        sa.Column("owner", sa.Text(), index=True),
        sa.Column("touched_at", UtcDateTime(), nullable=False),
        sa.Column("problem", sa.JSON()),
        sa.Column("errors", sa.JSON(), nullable=False),
        sa.Column("chunks", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("received", "open", "done", "skipped", "failed", "dropped")
        ),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("expected_bytes", sa.BigInteger(), nullable=False),
    )
    active = sa.text("ended_at IS NULL")
    op.create_index(
        "job_active",
        "job",
        ["priority", "served_at"],
        sqlite_where=active,
        postgresql_where=active,
    )
    op.create_index("job_by_creation", "job", ["created_at", "pk"])
    op.create_index("job_by_subject", "job", ["subject", "created_at", "pk"])
    op.create_table(
        "chunk",
        sa.Column("job_pk", RowId, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("scan", sa.Boolean(), nullable=False),
        sa.Column("place", ByteText),
        sa.Column("state", ByteText, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("owner", sa.Text(), index=True),
        sa.Column("touched_at", UtcDateTime(), nullable=False),
        sa.Column("fruitless", sa.Integer(), nullable=False),
        sa.Column("open", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("job_pk", "number"),
        sa.ForeignKeyConstraint(["job_pk"], ["job.pk"], ondelete="CASCADE"),
    )
    op.create_index("chunk_by_state", "chunk", ["job_pk", "state", "number"])
    op.create_table(
        "item",
        sa.Column("job_pk", RowId, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("chunk", sa.Integer(), nullable=False),
        sa.Column("state", ByteText, nullable=False),
        sa.Column("wanted", sa.JSON()),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger()),
        sa.Column("result", sa.Text()),
        sa.Column("code", sa.Text()),
        sa.Column("detail", sa.Text()),
        sa.Column("retryable", sa.Boolean()),
        sa.Column("product_id", ByteText),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", UtcDateTime()),
        sa.PrimaryKeyConstraint("job_pk", "number"),
        sa.ForeignKeyConstraint(["job_pk"], ["job.pk"], ondelete="CASCADE"),
    )
    op.create_index("item_by_state", "item", ["job_pk", "state", "sequence", "number"])
    op.create_index("item_by_chunk", "item", ["job_pk", "chunk", "state"])
