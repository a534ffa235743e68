"""What SQLite cannot know by itself: which columns hardly tell one row from another.

Nearly all products are in one state, and nearly all items of one job.  Without statistics SQLite
takes any index for as selective as any other: it walked all available products for a list of
names or for an id, and all items of a job for those of a chunk.  PostgreSQL keeps its own.
"""

from alembic import op
from sqlalchemy import text

revision = "0007"
down_revision = "0006"

#: By table and index: rows, and how many of them have one value of the first column, of the first
#: two, and so on.
_STATISTICS = {
    ("product", "product_touched"): "1000000 500000 2",
    ("product", "product_retention"): "1000000 500000 1000",
    ("item", "sqlite_autoindex_item_1"): "1000000 1000000 1",
    ("item", "item_by_chunk"): "1000000 1000000 250 250",
    ("item", "item_by_state"): "1000000 1000000 500000 1 1",
}


def upgrade() -> None:
    """To this version."""
    if op.get_context().dialect.name != "sqlite":
        return
    op.execute("ANALYZE sqlite_schema")  # makes the table of statistics if there is none
    op.execute("ANALYZE product")
    op.execute("DELETE FROM sqlite_stat1")
    op.get_bind().execute(
        text("INSERT INTO sqlite_stat1 VALUES (:table, :index, :statistics)"),
        [
            {"table": table, "index": index, "statistics": statistics}
            for (table, index), statistics in _STATISTICS.items()
        ],
    )
    op.execute("ANALYZE sqlite_schema")  # has them read
