"""Catalogs with many products, filled by the database itself: for what must not grow with them."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

from admin_api.catalog import usage
from admin_api.catalog.database import Catalog

#: Mission, type, and for how many seconds a product is sensed; products take turns.
KINDS = [
    ("S1", "IW_GRDH_1S", 25),
    ("S1", "IW_SLC__1S", 27),
    ("S2", "MSIL1C", 0),
    ("S2", "MSIL2A", 0),
    ("S3", "OL_1_EFR___", 180),
    ("S5P", "L2__NO2___", 6060),
]
#: All products are sensed within a year from here, and become available one after the other in it.
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
_YEAR = 365 * 86400

_SPEECH = {
    "sqlite": {
        "numbers": "WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < {n})",
        "from": "g",
        "time": "strftime('%Y-%m-%d %H:%M:%f000', 1735689600 + ({0}), 'unixepoch')",
        "padded": "printf('%010d', {0})",
    },
    "postgresql": {
        "numbers": "",
        "from": "generate_series(1, {n}) AS g(n)",
        "time": "timestamptz '2025-01-01 00:00:00+00' + ({0}) * interval '1 second'",
        "padded": "lpad(({0})::text, 10, '0')",
    },
}


def fill(catalog: Catalog, count: int) -> None:
    """So many products, every tenth removed, each with the event of its ingestion.

    The events have no seals.
    """
    with catalog.writing() as session:
        speech = _SPEECH[session.get_bind().dialect.name]
        _fill(session, speech, count)
        usage.recount(session)
    if not catalog.is_sqlite:
        with catalog.writing() as session:
            session.execute(text("ANALYZE"))


def product_id(number: int) -> str:
    """The id of the product with the row ``number``."""
    return f"{number:010}"


def _fill(session: Session, speech: dict[str, str], count: int) -> None:
    def case(at: int) -> str:
        whens = " ".join(f"WHEN {turn} THEN {kind[at]!r}" for turn, kind in enumerate(KINDS))
        return f"CASE n % {len(KINDS)} {whens} END"

    def time(seconds: str) -> str:
        return speech["time"].format(seconds)

    came = f"n * {_YEAR}.0 / {count}"
    # Not in the order of ingestion: a prime number strews the starts over the year.
    sensed = f"(n * 7919 % {count}) * {_YEAR}.0 / {count}"
    padded = speech["padded"]
    is_removed = "n % 10 = 0"
    columns = {
        "pk": "n",
        "id": padded.format("n"),
        "name": f"{case(0)} || '_' || {case(1)} || '_' || " + padded.format(f"n * 7919 % {count}"),
        "generation": "1",
        "number": f"CASE WHEN {is_removed} THEN 2 ELSE 1 END",
        "recorded": f"CASE WHEN {is_removed} THEN 2 ELSE 1 END",
        "state": f"CASE WHEN {is_removed} THEN 'removed' ELSE 'available' END",
        "mission": case(0),
        "product_type": case(1),
        "sensing_start": time(sensed),
        "sensing_stop": time(f"{sensed} + {case(2)}"),
        "size": "n",
        "file_count": "1",
        "directory": f"{case(0)} || '/' || {padded.format('n')}",
        "registered": "false",
        "level": "'digest'",
        "subject": "'filler'",
        "created_at": time(came),
        "touched_at": time(came),
        "available_at": time(came),
        "attempt": padded.format("n"),
    }
    _insert(session, speech, "product", columns, count)
    columns = {
        "number": "n",
        "time": time(came),
        "kind": "'product.ingested'",
        "subject": "'filler'",
        "product_id": padded.format("n"),
        "mission": case(0),
        "detail": "'{}'",
        "previous": "''",
        "digest": "''",
    }
    _insert(session, speech, "event", columns, count)
    columns = {
        "product_pk": "n",
        "path": "'file'",
        "size": "n",
        "sha256": padded.format("n"),
        "md5": padded.format("n"),
        "key": f"{case(0)} || '/' || {padded.format('n')} || '/file'",
    }
    _insert(session, speech, "file", columns, count, f"WHERE NOT {is_removed}")


def _insert(
    session: Session,
    speech: dict[str, str],
    table: str,
    columns: dict[str, str],
    count: int,
    where: str = "",
) -> None:
    source = speech["from"].format(n=count)
    statement = (
        f"INSERT INTO {table} ({', '.join(columns)}) {speech['numbers'].format(n=count)} "
        f"SELECT {', '.join(columns.values())} FROM {source} {where}"
    )
    if session.get_bind().dialect.name == "postgresql":
        statement = statement.replace("%", "%%")
    session.connection().exec_driver_sql(statement)
