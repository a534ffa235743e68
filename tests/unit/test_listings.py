"""Listings: whole, in order, and each page from an index, on SQLite and PostgreSQL."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import delete, event, select, text

from admin_api.catalog import database as catalog_database
from admin_api.catalog import entries, queries, usage
from admin_api.catalog.database import Catalog
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.models import File, Product
from admin_api.catalog.queries import EventFilter, ProductFilter
from admin_api.errors import InvalidRequest
from admin_api.settings import CatalogSettings
from tests.support.catalogs import BEGIN, KINDS, fill, product_id

DAY = timedelta(days=1)
#: What people ask for, alone and together.
PRODUCTS = {
    "all": ProductFilter(),
    "removed": ProductFilter(state="removed"),
    "nothing is being removed": ProductFilter(state="removing"),
    "mission": ProductFilter(mission="S2"),
    "mission without products": ProductFilter(mission="S9"),
    "type": ProductFilter(product_type="OL_1_EFR___"),
    "mission and type": ProductFilter(mission="S1", product_type="IW_SLC__1S"),
    "removed of a mission": ProductFilter(state="removed", mission="S2"),
    "name": ProductFilter(name="S1_IW_SLC__1S_0000007919"),
    "name prefix": ProductFilter(name_prefix="S2_MSIL1C_00000"),
    "name prefix and mission": ProductFilter(name_prefix="S", mission="S3"),
    "name prefix and nothing": ProductFilter(name_prefix="S2", mission="S3"),
    "name prefix and type": ProductFilter(name_prefix="S1_IW", product_type="IW_SLC__1S"),
    "sensing from": ProductFilter(sensing_from=BEGIN + 300 * DAY),
    "sensing to": ProductFilter(sensing_to=BEGIN + 30 * DAY),
    "sensing week": ProductFilter(sensing_from=BEGIN + 30 * DAY, sensing_to=BEGIN + 37 * DAY),
    "sensing moment": ProductFilter(
        sensing_from=BEGIN + 30 * DAY, sensing_to=BEGIN + 30 * DAY, mission="S5P"
    ),
    "mission, type and sensing": ProductFilter(
        mission="S3",
        product_type="OL_1_EFR___",
        sensing_from=BEGIN + 100 * DAY,
        sensing_to=BEGIN + 190 * DAY,
    ),
    "sensing and name prefix": ProductFilter(
        name_prefix="S1_IW_G", sensing_from=BEGIN + 10 * DAY, sensing_to=BEGIN + 50 * DAY
    ),
    "created from": ProductFilter(created_from=BEGIN + 340 * DAY),
    "created to": ProductFilter(created_to=BEGIN + 30 * DAY),
    "created of a mission": ProductFilter(mission="S1", created_from=BEGIN + 300 * DAY),
    "created of a type": ProductFilter(
        mission="S1",
        product_type="IW_GRDH_1S",
        created_from=BEGIN + 50 * DAY,
        created_to=BEGIN + 99 * DAY,
    ),
    "created and sensing": ProductFilter(
        created_from=BEGIN + 300 * DAY, sensing_from=BEGIN + 10 * DAY
    ),
}
EVENTS = {
    "all": EventFilter(),
    "behind a number": EventFilter(after=900),
    "before a number": EventFilter(before=500),
    "mission": EventFilter(mission="S3"),
    "mission without events": EventFilter(mission="S9"),
    "product": EventFilter(product_id=product_id(77)),
    "product of another mission": EventFilter(product_id=product_id(77), mission="S2"),
}
ORDERS = ["asc", "desc"]
TOKENS = [None, frozenset(["S1", "S5P"]), frozenset(["S8"])]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def make_catalog(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Catalog]:
    """Makes catalogs without tables, on each database."""

    def make() -> Catalog:
        if request.param == "sqlite":
            path = tmp_path_factory.mktemp("catalog") / "catalog.sqlite"
            return Catalog(CatalogSettings(url=f"sqlite:///{path}"))
        server = request.getfixturevalue("database")
        return Catalog(
            CatalogSettings(
                url=server.url(server.new_database()), password_file=server.password_file
            )
        )

    return make


@pytest.fixture(scope="module")
def small(make_catalog: Callable[[], Catalog]) -> Iterator[Catalog]:
    """3,000 products."""
    catalog = make_catalog()
    catalog.migrate()
    fill(catalog, 3000)
    yield catalog
    catalog.close()


@pytest.fixture(scope="module")
def large(make_catalog: Callable[[], Catalog]) -> Iterator[Catalog]:
    """100,000 products."""
    catalog = make_catalog()
    catalog.migrate()
    fill(catalog, 100_000)
    yield catalog
    catalog.close()


# -- what a listing gives ------------------------------------------------------------------------
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_pages_of_a_listing_are_all_that_the_filters_mean_in_order(
    small: Catalog, name: str, order: Any
) -> None:
    wish = replace(PRODUCTS[name], order=order)
    with small.reading() as session:
        everything = entries.all_of(ProductEntry, session, entries.products())
    for missions in TOKENS:
        expected = {
            item.pk
            for item in everything
            if means(wish, item) and (missions is None or item.mission in missions)
        }
        listed = list(follow(small, wish, missions))
        assert len(listed) == len(expected)
        assert {item.pk for item in listed} == expected
        keys = [sorted_by(wish, item) for item in listed]
        assert keys == sorted(keys, reverse=order == "desc")


def follow(
    catalog: Catalog, wish: ProductFilter, missions: frozenset[str] | None
) -> Iterator[ProductEntry]:
    cursor: str | None = None
    while True:
        with catalog.reading() as session:
            page, cursor = queries.products(session, wish, missions, cursor, 170)
        yield from page
        if cursor is None:
            return


def means(wish: ProductFilter, item: ProductEntry) -> bool:
    """What the documentation says of the filters."""
    assert item.sensing_start and item.sensing_stop and item.available_at
    return (
        item.state == wish.state
        and wish.mission in (None, item.mission)
        and wish.product_type in (None, item.product_type)
        and wish.name in (None, item.name)
        and item.name.startswith(wish.name_prefix or "")
        and (wish.sensing_from is None or item.sensing_stop >= wish.sensing_from)
        and (wish.sensing_to is None or item.sensing_start <= wish.sensing_to)
        and (wish.created_from is None or item.available_at >= wish.created_from)
        and (wish.created_to is None or item.available_at <= wish.created_to)
    )


def sorted_by(wish: ProductFilter, item: ProductEntry) -> Any:
    if wish.name is not None:
        return item.name
    if wish.sensing_from is not None or wish.sensing_to is not None:
        return item.sensing_start
    return item.name if wish.name_prefix else item.available_at


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", EVENTS)
def test_events_of_a_mission_or_a_product_come_in_order_and_newest_first(
    small: Catalog, name: str, order: Any
) -> None:
    wish = replace(EVENTS[name], order=order)
    for missions in TOKENS:
        with small.reading() as session:
            found = queries.events(session, wish, missions, 100)
        expected = [
            number
            for number in range(1, 3001)
            for mission in (KINDS[number % len(KINDS)][0],)
            if number > wish.after
            and (wish.before is None or number < wish.before)
            and wish.mission in (None, mission)
            and wish.product_id in (None, product_id(number))
            and (missions is None or mission in missions)
        ]
        if order == "desc":
            expected.reverse()
        assert [item.number for item in found] == expected[:100]


def test_a_page_looks_at_a_bounded_number_of_rows_where_nothing_fits(large: Catalog) -> None:
    wish = PRODUCTS["name prefix and nothing"]
    with large.reading() as session:
        of_prefix = sum(item.products for item in usage.read(session, frozenset(["S2"])))
    pages, cursor = 0, None
    while pages == 0 or cursor is not None:
        with large.reading() as session:
            page, cursor = queries.products(session, wish, None, cursor, 100)
        assert page == []
        pages += 1
    assert pages == of_prefix // queries.LOOKED_AT + 1


def coded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("cursor", "sentence"),
    [
        (coded("p17"), "earlier version"),
        (coded(json.dumps(["created", "desc", "2025-01-01T00:00:00+00:00", 1])), "other filters"),
        (coded(json.dumps(["name", "asc", "S1", 1])), "other filters"),
        (coded(json.dumps(["created", "asc", "yesterday", 1])), "not one that"),
        (coded(json.dumps(["created", "asc", "2025-01-01T00:00:00+00:00", True])), "not one that"),
        (coded(json.dumps(["created", "asc", "2025-01-01T00:00:00+00:00", 1 << 64])), "not one"),
        (coded(json.dumps(["created", "asc", "0001-01-01T00:00:00+23:59", 1])), "not one that"),
        (coded("[" * 5000), "not one that"),
        ("%", "not one that"),
        ("x", "not one that"),
    ],
)
def test_a_cursor_of_another_listing_or_version_is_refused_with_a_clear_sentence(
    small: Catalog, cursor: str, sentence: str
) -> None:
    with small.reading() as session, pytest.raises(InvalidRequest, match=sentence):
        queries.products(session, ProductFilter(), None, cursor, 10)


# -- what it costs -------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_no_listing_of_products_reads_or_sorts_whole_tables(
    large: Catalog, name: str, order: Any
) -> None:
    wish = replace(PRODUCTS[name], order=order)
    for missions in TOKENS:
        with planned(large) as check, large.reading() as session:
            _, cursor = queries.products(session, wish, missions, None, 100)
            if cursor is not None:
                queries.products(session, wish, missions, cursor, 100)
        check()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", EVENTS)
def test_no_listing_of_events_reads_or_sorts_whole_tables(
    large: Catalog, name: str, order: Any
) -> None:
    for missions in TOKENS:
        with planned(large) as check, large.reading() as session:
            queries.events(session, replace(EVENTS[name], order=order), missions, 100)
        check()


class planned:  # noqa: N801 - a context manager
    """Takes down the statements of a block; calling it looks at their plans."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.statements: list[tuple[str, Any]] = []

    def __enter__(self) -> Self:
        event.listen(self.catalog._engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(self.catalog._engine, "before_cursor_execute", self._note)

    def _note(self, _c: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        self.statements.append((statement, values))

    def __call__(self) -> None:
        """Refuse statements that read much, or sort it."""
        with self.catalog.reading() as session:
            connection = session.connection()
            for statement, values in self.statements:
                if not statement.startswith("SELECT") or "FROM usage" in statement:
                    continue
                if self.catalog.is_sqlite:
                    explain = f"EXPLAIN QUERY PLAN {statement}"
                    plan = [row[3] for row in connection.exec_driver_sql(explain, values)]
                    is_good = not re.search(r"SCAN (product|event)|TEMP B-TREE", "\n".join(plan))
                else:
                    explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"
                    plan = connection.exec_driver_sql(explain, values).scalar_one()
                    # It may sort a few thousand rows where it reckons that a walk costs more.
                    is_good = looked_at(plan[0]["Plan"]) <= 10 * queries.LOOKED_AT
                assert is_good, f"{json.dumps(plan, indent=1)}\n{statement}\n{values}"


def looked_at(plan: dict[str, Any]) -> int:
    """The rows that PostgreSQL has read for a statement, those that it had no use for with them."""
    names = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    inner = plan.get("Plans", [])
    rows = plan["Actual Rows"] if not inner else 0
    return rows + sum(plan.get(name, 0) for name in names) + sum(map(looked_at, inner))


# -- catalogs of earlier versions ----------------------------------------------------------------
def upgrade(catalog: Catalog, revision: str) -> None:
    with catalog._writer.begin() as connection:
        config = Config()
        config.set_main_option(
            "script_location", str(Path(catalog_database.__file__).parent / "migrations")
        )
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_a_catalog_of_the_first_version_is_listed_and_counted_after_its_migration(
    make_catalog: Callable[[], Catalog],
) -> None:
    catalog = make_catalog()
    upgrade(catalog, "0001")
    columns = (
        "pk, id, name, generation, number, state, mission, product_type, sensing_start, "
        "sensing_stop, size, file_count, directory, registered, level, subject, created_at, "
        "touched_at, available_at"
    )
    moments = "'2025-06-01 10:00:00.000000', '2025-06-01 11:41:00.500000'"
    times = "'2025-06-02 00:00:00.000000', " * 2
    rows = [
        (1, "a", "available", "'S1', 'SLC'", moments, 10, "'2025-06-02 00:00:00.000000'"),
        (2, "b", "available", "NULL, NULL", "NULL, NULL", 100, "'2025-06-03 00:00:00.000000'"),
        (3, "c", "removed", "'S1', 'SLC'", moments, 1000, "'2025-06-04 00:00:00.000000'"),
        (4, "d", "removed", "'S1', 'SLC'", moments, 0, "NULL"),
        (5, "e", "receiving", "'S2', 'X'", moments, 0, "NULL"),
    ]
    with catalog.writing() as session:
        for pk, name, state, kind, sensed, size, available in rows:
            session.connection().exec_driver_sql(
                f"INSERT INTO product ({columns}) VALUES ({pk}, 'id-{name}', '{name}', 1, 1, "
                f"'{state}', {kind}, {sensed}, {size}, 2, 'd/{name}', false, 'digest', 's', "
                f"{times} {available})"
            )
    catalog.migrate()
    with catalog.reading() as session:
        assert usage.differences(session) == []
        assert [
            (item.mission, item.products, item.files, item.bytes) for item in usage.read(session)
        ] == [
            (None, 1, 2, 100),
            ("S1", 1, 2, 10),
        ]
        assert usage.read(session)[1].longest_seconds == 6061
        page, _ = queries.products(session, ProductFilter(order="desc"), None, None, 10)
        assert [item.name for item in page] == ["b", "a"]
        page, _ = queries.products(session, ProductFilter(state="removed"), None, None, 10)
        assert [item.name for item in page] == ["c"]
    catalog.close()


def test_sums_that_are_wrong_are_told_and_set_right(make_catalog: Callable[[], Catalog]) -> None:
    catalog = make_catalog()
    catalog.migrate()
    fill(catalog, 60)
    with catalog.writing() as session:
        session.execute(text("UPDATE usage SET bytes = bytes + 5 WHERE mission = 'S2'"))
        session.execute(text("DELETE FROM usage WHERE mission = 'S3'"))
        session.execute(text("INSERT INTO usage VALUES ('S7', 'X', 1, 1, 1, 1)"))
    with catalog.writing() as session:
        assert len(usage.differences(session)) == 4
        assert len(usage.recount(session)) == 4
    with catalog.reading() as session:
        assert usage.differences(session) == []
        assert sum(item.products for item in usage.read(session)) == 54
    catalog.close()


def test_who_reads_a_product_sees_its_files_though_they_go_meanwhile(small: Catalog) -> None:
    """Row and files are two statements; between them others go on."""
    with small.writing() as session:
        product = session.scalars(select(Product).limit(1)).one()
        session.add(File(product_pk=product.pk, path="a", key="k/a", size=1, sha256="", md5=""))
        pk = product.pk
    found = select(File.path).where(File.product_pk == pk, File.path == "a")
    with small.reading() as session:
        session.get_one(Product, pk)
        with small.writing() as other:
            other.execute(delete(File).where(File.product_pk == pk, File.path == "a"))
        assert session.scalars(found).all() == ["a"]
    with small.reading() as session:
        assert session.scalars(found).all() == []
