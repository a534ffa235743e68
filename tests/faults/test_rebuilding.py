"""The lost catalog comes back from the records: from any history, in any order, whatever is damaged."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from admin_api.catalog.models import File, Product
from admin_api.cli.main import main as command
from admin_api.errors import StorageManagerError, Unavailable
from admin_api.products.records import RecordedFile, Statement, record_key
from admin_api.services import housekeeping, reconciliation, records, removal, uploads
from admin_api.services import rebuilding as module
from admin_api.services.access import Principal
from admin_api.services.facility import Facility, open_facility
from admin_api.services.ingest import Order, ingest
from admin_api.services.rebuilding import Rebuilt, rebuild
from admin_api.services.records import Found, Unreadable
from admin_api.services.wishes import Expected, Policy, Wish
from admin_api.settings import CatalogSettings
from admin_api.storage.base import Stat
from tests.conftest import make_facility

OPERATOR = Principal("operator", frozenset(["admin"]), None)
START = datetime(2026, 11, 1, tzinfo=UTC)
NOT_COMPARED = {"pk", "touched_at", "successor"}


def problems_of(facility: Facility) -> list[Unreadable]:
    """Rebuild, and what could not be taken in."""
    return [item for item in rebuild(facility) if isinstance(item, Unreadable)]


def rows_of(facility: Facility, but: Sequence[str] = ()) -> dict[tuple[str, int], dict]:
    """Every generation with its files, without what belongs to one catalog only."""
    with facility.catalog.reading() as session:
        return {
            (row.name, row.generation): {
                column.key: getattr(row, column.key)
                for column in Product.__table__.columns
                if column.key not in NOT_COMPARED and column.key not in but
            }
            | {
                "files": {
                    (file.path, file.size, file.sha256, file.md5, file.key)
                    for file in records.files_of(session, row)
                }
            }
            for row in session.scalars(select(Product))
        }


def emptied(facility: Facility) -> Facility:
    """The facility after its catalog was lost."""
    with facility.catalog.writing() as session:
        session.execute(delete(Product))
    return facility


# -- histories made of statements ------------------------------------------------------------------
def said(minute: int, state: str, name: str, generation: int, product_id: str, number: int, **more):
    """A statement as the services make it, at a time of its own."""
    directory = f"unsorted/{name}" + (f"@{generation}" if generation > 1 else "")
    files = tuple(
        RecordedFile(path=path, size=7, sha256="a" * 64, md5="b" * 32, key=f"{directory}/{path}")
        for path in (("x", f"y{product_id}") if state == "available" else ())
    )
    made = START + timedelta(hours=generation)
    return Statement(
        state=state,
        id=product_id,
        name=name,
        generation=generation,
        number=number,
        time=START + timedelta(minutes=minute),
        attempt=f"attempt-{product_id}-{generation}",
        subject=f"remover{minute}" if state == "removed" else f"subject-{product_id}",
        cause=f"cause{minute}" if state == "removed" else None,
        mission="S1",
        directory=directory,
        level="digest",
        created_at=made,
        available_at=None if state == "void" else made + timedelta(seconds=5),
        list_digest="c" * 64,
        files=files,
        **more,
    )


@st.composite
def histories(draw) -> list[Statement]:
    """What may be in the stores of a facility with a past: crashes, ghosts and failures included."""
    statements: list[Statement] = []
    minute = 0
    for name in draw(
        st.lists(st.sampled_from(["a", "b", "né"]), min_size=1, max_size=3, unique=True)
    ):
        for generation in range(1, 1 + draw(st.integers(1, 4))):
            for product_id in draw(
                st.lists(st.sampled_from(["aa", "mm", "zz"]), max_size=2, unique=True)
            ):
                has_product = any(
                    (item.name, item.generation, item.state) == (name, generation, "available")
                    for item in statements
                )
                kind = draw(
                    st.sampled_from(
                        ["void", "removed"] if has_product else ["product"] * 3 + ["void"]
                    )
                )
                if kind == "void":
                    statements.append(said(minute, "void", name, generation, product_id, 1))
                    continue
                count = draw(st.integers(1, 4))
                removed = (
                    draw(st.integers(2, count + 1))
                    if kind == "removed" or draw(st.booleans())
                    else None
                )
                for number in range(1, count + 1):
                    minute += 1
                    if number == removed:
                        # What comes behind it is a ghost: written by a change that came too late.
                        statements.append(
                            said(minute, "removed", name, generation, product_id, number)
                        )
                        continue
                    hold = (
                        {"hold_reason": f"why{minute}", "hold_by": "who"}
                        if draw(st.booleans())
                        else {}
                    )
                    statements.append(
                        said(minute, "available", name, generation, product_id, number, **hold)
                    )
                if removed == count + 1:
                    minute += 1
                    statements.append(
                        said(minute, "removed", name, generation, product_id, removed)
                    )
    return statements


def expected(statements: Sequence[Statement]) -> dict[tuple[str, int], dict]:
    """The rules, said once more and plainly: which rows there must be."""
    rows = {}
    for name, generation in {(item.name, item.generation) for item in statements}:
        of_place = [
            item for item in statements if (item.name, item.generation) == (name, generation)
        ]
        claims = {}
        for product_id in {item.id for item in of_place}:
            mine = sorted(
                (item for item in of_place if item.id == product_id), key=lambda x: x.number
            )
            states = {item.state for item in mine}
            state = next(item for item in ("removed", "available", "void") if item in states)
            claims[product_id] = (state, mine)
        best = next(
            state
            for state in ("available", "removed", "void")
            if state in {claim[0] for claim in claims.values()}
        )
        product_id = min(key for key, claim in claims.items() if claim[0] == best)
        mine = claims[product_id][1]
        rows[name, generation] = {
            "id": product_id,
            "number": mine[-1].number,
            "recorded": mine[-1].number,
            "state": best if best == "available" else "removed",
            "existed": best != "void",
            "newest": [item for item in mine if item.state == "available"][-1:],
            "removal": next((item for item in mine if item.state == "removed"), None),
        }
    for (name, generation), row in rows.items():
        later = [g for n, g in rows if n == name and g > generation and rows[n, g]["existed"]]
        if row["state"] == "available" and later:
            row["state"] = "removing"
    return rows


def check(facility: Facility, statements: Sequence[Statement]) -> None:
    wanted, found = expected(statements), rows_of(facility)
    assert found.keys() == wanted.keys()
    for place, row in found.items():
        want = wanted[place]
        for member in ("id", "number", "recorded", "state"):
            assert row[member] == want[member], (place, member, row)
        assert (row["available_at"] is not None) == want["existed"], (place, row)
        newest, removal = want["newest"], want["removal"]
        if removal is not None:
            assert row["files"] == set()
            assert (row["removed_at"], row["removed_by"], row["removed_cause"]) == (
                removal.time,
                removal.subject,
                removal.cause,
            )
        elif newest:
            assert (row["hold_reason"], row["hold_by"]) == (
                newest[0].hold_reason,
                newest[0].hold_by,
            )
            assert {file[4] for file in row["files"]} == {file.key for file in newest[0].files}
            assert row["attempt"] == newest[0].attempt
        if newest:
            assert (row["size"], row["file_count"], row["subject"]) == (14, 2, newest[0].subject)
            assert (row["created_at"], row["available_at"]) == (
                newest[0].created_at,
                newest[0].available_at,
            )
        if want["state"] == "removing":
            assert row["removed_cause"].startswith("replaced")
            assert row["removed_by"] is not None


def reading(monkeypatch, statements: Sequence[Statement]) -> None:
    """Have the stores hold these, in this order."""
    found = [
        Found("", record_key(item.id, item.name, item.generation, item.number), item.line(), item)
        for item in statements
    ]
    monkeypatch.setattr(module.records, "read_all", lambda facility: iter(found))


class _Property:
    """Any history, read in any order, twice, or after a part of it: always the same catalog."""

    @staticmethod
    def check(facility: Facility, history: list[Statement], seed: int, cut: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            random.Random(seed).shuffle(history)
            reading(patch, history)
            emptied(facility)
            assert problems_of(facility) == []
            check(facility, history)
            before = rows_of(facility)
            last = [item for item in rebuild(facility) if isinstance(item, Rebuilt)][-1]
            assert last == Rebuilt(len(history), 0)
            assert rows_of(facility) == before
            # An older catalog, or one of a store of which a part could not be read.
            emptied(facility)
            reading(patch, history[:cut])
            list(rebuild(facility))
            older = rows_of(facility)
            reading(patch, history)
            assert problems_of(facility) == []
            for place, row in rows_of(facility).items():
                if row["state"] == "removing" and before[place]["state"] == "removed":
                    # The older catalog was about to remove it: its clean-up goes on.
                    assert older[place]["state"] == "removing"
                    row = row | {"state": "removed", "files": set()}
                if row["available_at"] is None:
                    # Nothing came of it, whoever tried: the row only keeps the number.
                    row = row | {key: before[place][key] for key in ("id", "attempt", "subject")}
                if before[place]["state"] == "removing":
                    # On its way out: who replaced it and what held it is as the catalog of then knew.
                    told = ("removed_at", "removed_by", "removed_cause", "hold_reason", "hold_by")
                    row = row | {key: before[place][key] for key in told}
                assert row == before[place], place
            assert rows_of(facility).keys() == before.keys()


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory) -> Iterator[Facility]:
    facility = make_facility(
        directory := tmp_path_factory.mktemp("sqlite"),
        {"type": "posix", "root": directory / "store"},
    )
    yield facility
    facility.catalog.close()


@pytest.fixture(scope="module")
def on_postgresql(tmp_path_factory, database) -> Iterator[Facility]:
    directory = tmp_path_factory.mktemp("postgresql")
    facility = make_facility(
        directory,
        {"type": "posix", "root": directory / "store"},
        catalog={
            "url": database.url(database.new_database()),
            "password_file": database.password_file,
        },
    )
    yield facility
    facility.catalog.close()


# Shrinking a history through a database takes minutes; the seed that is printed gives it again.
QUICK = {"deadline": None, "phases": (Phase.explicit, Phase.generate)}


@settings(max_examples=60, **QUICK)
@given(history=histories(), seed=st.integers(0, 1 << 30), cut=st.integers(0, 12))
def test_every_history_read_in_any_order_gives_the_lost_catalog(
    on_sqlite, history, seed, cut
) -> None:
    _Property.check(on_sqlite, history, seed, cut)


@settings(max_examples=15, **QUICK)
@given(history=histories(), seed=st.integers(0, 1 << 30), cut=st.integers(0, 12))
def test_so_it_does_on_postgresql(on_postgresql, history, seed, cut) -> None:
    _Property.check(on_postgresql, history, seed, cut)


# -- histories made by the services ----------------------------------------------------------------
class _Killed(BaseException):
    """The process dies here."""


@contextlib.contextmanager
def dying(facility: Facility, before: bool) -> Iterator[None]:
    """The process dies when it writes the next record: before it is there, or just after."""
    put = facility.storage.put

    def killing(key, chunks, size_hint=None):
        if not key.startswith(".products/"):
            return put(key, chunks, size_hint)
        if not before:
            put(key, chunks, size_hint)
        raise _Killed

    facility.storage.put = killing
    try:
        with contextlib.suppress(_Killed):
            yield
    finally:
        facility.storage.put = put


NAMES = ("plain.nc", "other.nc", "née.nc")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["ingest"] * 4
            + ["replace", "remove", "remove", "hold", "release", "retain"]
            + ["register", "fail", "archive"]
        ),
        st.sampled_from(NAMES),
        st.sampled_from([None, "aa", "zz"]),
        st.integers(1, 3),
        st.sampled_from([None] * 4 + ["before", "after"]),
    ),
    min_size=2,
    max_size=9,
)


def act(
    facility: Facility, inbox: Path, verb: str, name: str, product_id: str | None, content: int
):
    """One step of a history; what the services refuse has changed nothing."""
    data = bytes([content]) * (100 + content)
    with facility.catalog.reading() as session:
        current = session.scalars(
            select(Product).where(Product.name == name, Product.state == "available")
        ).first()
    wish = Wish(
        name,
        None if product_id is None else f"{product_id}-{name[0]}",
        Policy.REPLACE if verb == "replace" else Policy.SKIP,
    )
    if verb in ("ingest", "replace"):
        uploads.receive(facility, OPERATOR, wish, iter([data]), Expected(), None)
    elif verb == "fail":
        uploads.receive(facility, OPERATOR, wish, iter([data]), Expected(sha256="0" * 64), None)
    elif verb == "archive":
        (inbox / name).mkdir(exist_ok=True)
        (inbox / name / "a.nc").write_bytes(data)
        (inbox / name / "b").mkdir(exist_ok=True)
        (inbox / name / "b" / "c.nc").write_bytes(data)
        ingest(facility, OPERATOR, wish, Order(source=(inbox / name).as_uri()))
    elif verb == "register":
        (store,) = facility.storage.stores.values()
        place = store.root / "by-hand" / f"{content}.nc"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data)
        ingest(facility, OPERATOR, wish, Order(source=place.as_uri(), register=True))
    elif current is None:
        return
    elif verb == "remove":
        removal.remove(facility, OPERATOR, current.id, "not needed")
    elif verb in ("hold", "release"):
        reason = "wanted" if verb == "hold" else None
        wish = removal.Keeping(change_hold=True, hold_reason=reason)
        removal.keep(facility, OPERATOR, current.id, wish)
    else:
        wish = removal.Keeping(
            change_retention=True, retention_until=START + timedelta(days=content)
        )
        removal.keep(facility, OPERATOR, current.id, wish)


class _Services:
    """A history by the services, with crashes; the catalog is lost; the records give it back."""

    @staticmethod
    def check(directory: Path, catalogs, steps, seed: int) -> None:
        first = make_facility(
            directory,
            {"type": "posix", "root": directory / "store"},
            housekeeping={"grace_seconds": 1e-6, "commit_grace_seconds": 1e-6},
            catalog=next(catalogs),
        )
        try:
            for verb, name, product_id, content, crash in steps:
                with contextlib.ExitStack() as stack:
                    stack.enter_context(contextlib.suppress(StorageManagerError))
                    if crash is not None:
                        stack.enter_context(dying(first, crash == "before"))
                    act(first, directory / "inbox", verb, name, product_id, content)
                housekeeping.clean(first)
            housekeeping.clean(first)
            lost = rows_of(first, but=["recorded"])
        finally:
            first.catalog.close()
        second = open_facility(first.settings.model_copy(update={"catalog": next(catalogs)}))
        try:
            with pytest.MonkeyPatch.context() as patch:
                items = list(records.read_all(second))
                random.Random(seed).shuffle(items)
                patch.setattr(module.records, "read_all", lambda facility: iter(items))
                assert problems_of(second) == []
            rebuilt = rows_of(second, but=["recorded"])
            real = {place: row for place, row in lost.items() if row["available_at"] is not None}
            assert {
                place: row for place, row in rebuilt.items() if row["available_at"] is not None
            } == real
            for place in rebuilt.keys() - real.keys():
                assert rebuilt[place]["state"] == "removed", "an attempt that failed is a product"
            for name in NAMES:
                given = {generation for other, generation in rebuilt if other == name}
                with contextlib.suppress(StorageManagerError):  # held
                    wish = Wish(name, policy=Policy.REPLACE)
                    made = uploads.receive(second, OPERATOR, wish, iter([b"new"]), Expected(), None)
                    if made.result != "skipped":
                        assert made.product.generation > max(given, default=0), "given twice"
        finally:
            second.catalog.close()


@settings(max_examples=12, **QUICK)
@given(steps=STEPS, seed=st.integers(0, 1 << 30))
def test_what_the_services_did_comes_back_when_the_catalog_is_lost(
    tmp_path_factory, steps, seed
) -> None:
    directory = tmp_path_factory.mktemp("history")
    urls = (f"sqlite:///{directory}/{name}.sqlite" for name in ("lost", "rebuilt"))
    _Services.check(directory, (CatalogSettings(url=url) for url in urls), steps, seed)


@settings(max_examples=3, **QUICK)
@given(steps=STEPS, seed=st.integers(0, 1 << 30))
def test_so_it_does_from_postgresql(tmp_path_factory, database, steps, seed) -> None:
    made = (
        CatalogSettings(
            url=database.url(database.new_database()), password_file=database.password_file
        )
        for _ in range(2)
    )
    _Services.check(tmp_path_factory.mktemp("history"), made, steps, seed)
