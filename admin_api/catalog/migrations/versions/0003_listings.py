"""Listings that do not grow with the catalog: their indexes, and sums that are kept."""

import sqlalchemy as sa
from alembic import op

from admin_api.catalog.models import ByteText

revision = "0003"
down_revision = "0002"

_SHOWN = {
    "product_by_creation": ["state", "available_at", "pk"],
    "product_by_mission": ["state", "mission", "available_at", "pk"],
    "product_by_type": ["state", "mission", "product_type", "available_at", "pk"],
    "product_by_name": ["state", "name", "generation"],
    "product_by_sensing": ["state", "sensing_start", "pk"],
    "product_by_mission_sensing": ["state", "mission", "sensing_start", "pk"],
    "product_by_type_sensing": ["state", "mission", "product_type", "sensing_start", "pk"],
}
_SECONDS = {
    "sqlite": "(julianday(sensing_stop) - julianday(sensing_start)) * 86400",
    "postgresql": "floor(extract(epoch FROM sensing_stop - sensing_start))",
}


def upgrade() -> None:
    """To this version; what is stored already is counted."""
    op.drop_index("product_listing", "product")
    op.drop_index("product_sensing", "product")
    op.drop_index("ix_event_product_id", "event")
    for name, columns in _SHOWN.items():
        _index(name, "product", columns, "available_at IS NOT NULL")
    _index("product_failed", "product", ["state", "touched_at"], "available_at IS NULL")
    _index("product_unrecorded", "product", ["state", "touched_at"], "recorded < number")
    _index("product_successor", "product", ["successor"], "successor IS NOT NULL")
    op.create_index("event_product", "event", ["product_id", "number"])
    op.create_index("event_mission", "event", ["mission", "number"])
    usage = op.create_table(
        "usage",
        sa.Column("mission", ByteText, nullable=False),
        sa.Column("product_type", ByteText, nullable=False),
        sa.Column("products", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("longest_seconds", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("mission", "product_type"),
    )
    op.execute(sa.insert(usage).from_select(usage.columns.keys(), _counted()))


def _counted() -> sa.Select[tuple[object, ...]]:
    """What is available of each mission and type, and the longest sensing time of all."""
    names = ("mission", "product_type", "state", "size", "file_count", "available_at")
    product = sa.table("product", *(sa.column(name) for name in names))
    kind = [sa.func.coalesce(product.c[name], "") for name in names[:2]]
    available = product.c.state == "available"
    seconds: sa.ColumnElement[float] = sa.literal_column(_SECONDS[op.get_bind().dialect.name])
    return (
        sa.select(
            *kind,
            sa.func.sum(sa.case((available, 1), else_=0)),
            sa.func.sum(sa.case((available, product.c.file_count), else_=0)),
            sa.func.sum(sa.case((available, product.c.size), else_=0)),
            sa.func.coalesce(sa.func.max(sa.cast(seconds, sa.BigInteger) + 1), 0),
        )
        .where(product.c.available_at.is_not(None))
        .group_by(*kind)
    )


def downgrade() -> None:
    """Back from it."""
    op.drop_table("usage")
    op.drop_index("event_mission", "event")
    op.drop_index("event_product", "event")
    for name in (*_SHOWN, "product_failed", "product_unrecorded", "product_successor"):
        op.drop_index(name, "product")
    op.create_index("ix_event_product_id", "event", ["product_id"])
    op.create_index("product_sensing", "product", ["state", "sensing_start"])
    op.create_index(
        "product_listing",
        "product",
        ["state", "mission", "product_type", "pk", "size", "file_count"],
    )


def _index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
