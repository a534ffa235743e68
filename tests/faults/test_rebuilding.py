"""The lost catalog comes back from the records: from any history, in any order, whatever is damaged."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, select, update

from admin_api.catalog import entries
from admin_api.catalog.models import File, Product
from admin_api.cli.main import main as command
from admin_api.errors import StorageManagerError, Unavailable
from admin_api.products.records import RecordedFile, Statement, record_key
from admin_api.services import (
    housekeeping,
    identity,
    reconciliation,
    records,
    removal,
    uploads,
)
from admin_api.services import rebuilding as module
from admin_api.services.access import Principal
from admin_api.services.facility import Facility, open_facility
from admin_api.services.ingest import Order, ingest
from admin_api.services.rebuilding import Rebuilt, rebuild
from admin_api.services.records import Found, Unreadable
from admin_api.services.wishes import Expected, Policy, Wish
from admin_api.settings import CatalogSettings
from admin_api.storage.base import Stat
from admin_api.storage.posix import PosixStorage
from tests.conftest import make_facility, stale_at_once

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
                    for file in entries.files_of(session, row.pk)
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
            assert last == Rebuilt(len(history), len(history), 0)
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
            housekeeping=stale_at_once(),
            catalog=next(catalogs),
        )
        try:
            for verb, name, product_id, content, crash in steps:
                with contextlib.ExitStack() as stack:
                    stack.enter_context(contextlib.suppress(StorageManagerError))
                    if crash in ("before", "after"):
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
                identity.take_back(second.catalog, second.storage)
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


@settings(max_examples=10, **QUICK)
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


# -- single faults ---------------------------------------------------------------------------------
@pytest.fixture
def site(tmp_path: Path) -> Iterator[Facility]:
    facility = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"})
    yield facility
    facility.catalog.close()


def put(
    facility: Facility, name: str, product_id: str | None = None, data: bytes = b"x"
) -> Product:
    wish = Wish(name, product_id, Policy.REPLACE)
    return uploads.receive(facility, OPERATOR, wish, iter([data]), Expected(), None).product


def record_of(facility: Facility, product: Product, number: int = 1) -> Path:
    (store,) = facility.storage.stores.values()
    return store.root / record_key(product.id, product.name, product.generation, number)


def written(path: Path, *statements: Statement) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(statement.line() for statement in statements))


def changed(path: Path, **changes: object) -> None:
    """What the record would be if somebody had written other things with a right checksum."""
    content = json.loads(path.read_bytes())
    (file,) = content["files"]
    del content["check"]
    if "key" in changes:
        changes = {"files": [file | changes]}
    written(path, Statement(**(content | changes)))


DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "garbage": lambda path: path.write_bytes(os.urandom(500)),
    "NULs": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "empty": lambda path: os.truncate(path, 0),
    "unknown version": lambda path: path.write_bytes(b'{"version":7,"state":"moved"}\n'),
    "altered": lambda path: path.write_bytes(path.read_bytes().replace(b'"size":1', b'"size":2')),
    "leads out": lambda path: changed(path, key="../../../etc/passwd"),
    "another's key": lambda path: changed(path, key="unsorted/left.nc/left.nc"),
    "our own key": lambda path: changed(path, key=".products/00/x.jsonl"),
    "no directory": lambda path: changed(path, directory=""),
    "too long": lambda path: path.write_bytes(b"{" + b" " * 2000 + b"}\n"),
    "a link": lambda path: (
        path.rename(path.with_suffix(".moved")),
        path.symlink_to(path.with_suffix(".moved")),
    ),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a directory": lambda path: (path.unlink(), path.mkdir(), (path / "x.jsonl").write_bytes(b"?")),
    "mode 0, read fails": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named_and_costs_no_other_product(
    site: Facility, monkeypatch, damage: str
) -> None:
    products = [put(site, name) for name in ("left.nc", "broken.nc", "right.nc")]
    path = record_of(site, products[1])
    key = str(path.relative_to(path.parents[2]))
    whole = rows_of(site)
    if DAMAGES[damage] is None:
        opened = site.storage.open

        def failing(name, start=0, stop=None):
            if name == key:
                raise Unavailable("The store failed on it: Input/output error.")
            return opened(name, start, stop)

        monkeypatch.setattr(site.storage, "open", failing)
    else:
        DAMAGES[damage](path)
    monkeypatch.setattr("admin_api.products.records.MAX_LINE_BYTES", 1500)

    told = [
        item
        for item in reconciliation.reconcile(site, OPERATOR)
        if isinstance(item, reconciliation.Finding)
    ]
    assert {item.key.removesuffix("/x.jsonl") for item in told} == {key}
    assert "unreadable" in {item.kind for item in told}
    assert all(item.reason for item in told)

    problems = problems_of(emptied(site))
    assert [item.key.removesuffix("/x.jsonl") for item in problems] == [key]
    assert problems[0].reason.startswith(("is ", "line 1 ", "cannot be read"))
    del whole["broken.nc", 1]
    assert rows_of(site, but=["recorded"]) == {
        place: {key: value for key, value in row.items() if key != "recorded"}
        for place, row in whole.items()
    }


def test_one_bad_line_of_many_in_an_object_is_named_by_its_number(site: Facility) -> None:
    products = [put(site, name) for name in ("a", "b", "c")]
    lines = [record_of(site, product).read_bytes() for product in products]
    for product in products:
        record_of(site, product).unlink()
    bulk = record_of(site, products[0]).with_name("chunk-000001.jsonl")
    bulk.write_bytes(lines[0] + lines[1].replace(b"unsorted", b"unsortet") + lines[2])
    (problem,) = problems_of(emptied(site))
    assert problem.key.endswith("chunk-000001.jsonl")
    assert problem.reason.startswith("line 2 ")
    assert {name for name, _ in rows_of(site)} == {"a", "c"}


def test_the_command_names_what_is_unreadable_and_says_so_by_its_exit_code(
    site: Facility, tmp_path: Path, monkeypatch
) -> None:
    broken = put(site, "broken.nc")
    put(site, "whole.nc")
    settings_file = tmp_path / "settings.toml"
    settings_file.write_text(
        f'state_dir = "{tmp_path}/fresh"\n[auth]\nkey_file = "{tmp_path}/keys"\n'
        f'[[storage.mounts]]\n[storage.mounts.backend]\ntype = "posix"\nroot = "{tmp_path}/store"\n'
    )

    def run(*arguments: str):
        return CliRunner().invoke(
            command, ["rebuild", "--settings", str(settings_file), *arguments]
        )

    fine = run()
    assert fine.exit_code == 0
    assert re.search(r"^read: 2 statements \d+/s$", fine.stderr, re.MULTILINE)
    assert re.search(r"^told: 2/2 statements \d+/s$", fine.stderr, re.MULTILINE)
    assert "storage-manager reconcile" in fine.stderr
    path = record_of(site, broken)
    os.truncate(path, 40)
    said = run()
    assert said.exit_code == 1
    assert path.name in said.output
    assert "storage-manager reconcile" in said.output
    assert "2 statements read" not in said.output
    machine = run("--json")
    assert machine.exit_code == 1
    *unreadable, summary = [json.loads(line) for line in machine.stdout.splitlines()]
    assert summary == {"statements": 1, "applied": 0}
    assert [(line["type"], Path(line["key"]).name) for line in unreadable] == [
        ("unreadable", path.name)
    ]

    def failing(*_):
        raise Unavailable("The store does not answer.")

    monkeypatch.setattr(PosixStorage, "list", failing)
    assert run().exit_code == 6


def test_a_store_that_fails_in_the_middle_is_an_error_and_not_a_list_of_records(
    site: Facility, monkeypatch
) -> None:
    put(site, "a")

    def failing(*_):
        raise Unavailable("The store does not answer.")

    monkeypatch.setattr(site.storage, "open", failing)
    (store,) = site.storage.stores.values()
    monkeypatch.setattr(store, "ping", failing)
    with pytest.raises(Unavailable):
        list(rebuild(site))


def test_a_name_that_came_again_under_another_id_comes_back(site: Facility) -> None:
    put(site, "n", "zz")
    removal.remove(site, OPERATOR, "zz", "test")
    put(site, "n", "aa")
    lost = rows_of(site, but=["recorded"])
    assert problems_of(emptied(site)) == []
    assert rows_of(site, but=["recorded"]) == lost


def test_the_void_of_a_forgotten_attempt_hides_no_product(site: Facility) -> None:
    product = put(site, "n", "mm")
    statement = Statement.model_validate_json(record_of(site, product).read_bytes())
    for other in ("aa", "zz"):
        void = statement.model_copy(update={"id": other, "state": "void", "files": ()})
        records.write(site, "", void)
    lost = rows_of(site, but=["recorded"])
    assert problems_of(emptied(site)) == []
    assert rows_of(site, but=["recorded"]) == lost


@pytest.mark.parametrize("state", ["receiving", "committing", "removing", "removed"])
def test_an_attempt_that_an_old_catalog_has_in_hand_becomes_what_its_record_says(
    site: Facility, state: str
) -> None:
    put(site, "n", "mm")
    lost = rows_of(site, but=["recorded"])
    with site.catalog.writing() as session:
        session.execute(delete(File))
        session.execute(
            update(Product).values(
                state=state, id="0" * 32, number=0, recorded=0, available_at=None, list_digest=None
            )
        )
    assert problems_of(site) == []
    assert rows_of(site, but=["recorded"]) == lost


@pytest.mark.parametrize("state", ["removing", "removed"])
def test_a_removal_that_only_the_catalog_knows_is_not_undone(site: Facility, state: str) -> None:
    put(site, "n")
    with site.catalog.writing() as session:
        session.execute(update(Product).values(state=state, number=2, removed_cause="decided"))
    newer = rows_of(site, but=["recorded"])
    assert problems_of(site) == []
    assert rows_of(site, but=["recorded"]) == newer


def test_a_removed_product_whose_last_record_is_damaged_does_not_come_back_without_its_bytes(
    site: Facility,
) -> None:
    gone, there = put(site, "gone.nc"), put(site, "there.nc")
    removal.remove(site, OPERATOR, gone.id, "test")
    wish = removal.Keeping(change_hold=True, hold_reason="wanted")
    removal.keep(site, OPERATOR, there.id, wish)
    for product in (gone, there):
        os.truncate(record_of(site, product, 2), 30)
    assert len(problems_of(emptied(site))) == 2
    rows = rows_of(site)
    assert (rows["gone.nc", 1]["state"], rows["there.nc", 1]["state"]) == ("removed", "available")
    # The numbers of the damaged records are taken: the next change goes behind them.
    assert {row["number"] for row in rows.values()} == {2}
    assert removal.keep(site, OPERATOR, there.id, wish)[0].number == 3
    assert len(problems_of(site)) == 2
    assert rows_of(site)["there.nc", 1]["hold_reason"] == "wanted"


def test_a_higher_generation_that_came_and_went_before_takes_no_product_with_it(
    site: Facility,
) -> None:
    """Earlier versions let an attempt that began first be committed last."""
    product = put(site, "n")
    content = json.loads(record_of(site, product).read_bytes())
    del content["check"]
    before = (product.available_at - timedelta(minutes=5)).isoformat()
    content |= {"generation": 2, "number": 2, "state": "removed", "files": []}
    content |= {"directory": "unsorted/n@2", "available_at": before, "time": before}
    gone = record_of(site, product).with_name(f"{product.id}-000002-000002.jsonl")
    written(gone, Statement(**content))
    again = emptied(site)
    assert problems_of(again) == []
    housekeeping.clean(again)
    states = {place: row["state"] for place, row in rows_of(again).items()}
    assert states == {("n", 1): "available", ("n", 2): "removed"}


def test_a_change_goes_behind_a_damaged_record_that_has_its_number(site: Facility) -> None:
    product = put(site, "n")
    wish = removal.Keeping(change_hold=True, hold_reason="wanted")
    record_of(site, product, 2).write_bytes(b"?")
    assert removal.keep(site, OPERATOR, product.id, wish)[0].number == 3


def test_a_file_that_was_registered_again_belongs_to_the_newer_product(site: Facility) -> None:
    (store,) = site.storage.stores.values()
    place = store.root / "by-hand" / "x.nc"
    place.parent.mkdir()
    place.write_bytes(b"x")
    order = Order(source=place.as_uri(), register=True)
    ingest(site, OPERATOR, Wish("z-first", "first"), order)
    with site.catalog.reading() as session:
        older = session.scalars(select(Product)).one()
        files = session.scalars(select(File).where(File.product_pk == older.pk)).all()
    removal.remove(site, OPERATOR, "first", "test")
    ingest(site, OPERATOR, Wish("a-second", "second"), order)
    lost = rows_of(site, but=["recorded"])
    # The old catalog knows the first product only; the second comes earlier in the records.
    with emptied(site).catalog.writing() as session:
        for row in (older, *files):
            session.merge(row)
    assert problems_of(site) == []
    assert rows_of(site, but=["recorded"]) == lost


# -- reconciliation --------------------------------------------------------------------------------
def findings(facility: Facility, principal: Principal = OPERATOR) -> dict[str, str]:
    return {
        item.key: item.kind
        for item in reconciliation.reconcile(facility, principal)
        if isinstance(item, reconciliation.Finding)
    }


def test_reconcile_notices_records_that_are_gone_or_say_something_else(site: Facility) -> None:
    gone, held, whole = (put(site, name) for name in ("gone.nc", "held.nc", "whole.nc"))
    wish = removal.Keeping(change_hold=True, hold_reason="wanted")
    removal.keep(site, OPERATOR, held.id, wish)
    assert rows_of(site) and findings(site) == {}
    with site.catalog.writing() as session:
        session.execute(update(Product).values(recorded=Product.number))
    assert findings(site) == {}
    record_of(site, gone).unlink()
    with site.catalog.writing() as session:
        session.execute(update(Product).where(Product.id == held.id).values(hold_reason=None))
        session.execute(update(File).where(File.product_pk == whole.pk).values(sha256="0" * 64))
    root = record_of(site, gone).parents[2]
    assert findings(site) == {
        str(record_of(site, gone).relative_to(root)): "record_missing",
        str(record_of(site, held, 2).relative_to(root)): "contradiction",
        str(record_of(site, whole).relative_to(root)): "contradiction",
    }


def test_an_administrator_of_one_mission_hears_of_its_findings_only(site: Facility) -> None:
    names = [
        "S3A_SL_1_RBT____20190116T050535_20190116T050835_20190117T125958_0179_021_048_0000_LN2_O_NT_003.SEN3",
        "S5P_OFFL_L2__HCHO___20200328T053329_20200328T071459_12724_01_010108_20200330T103521.nc",
    ]
    products = [put(site, name) for name in (*names, "plain.nc")]
    (store,) = site.storage.stores.values()
    for product in products:
        (store.root / product.directory / product.name).write_bytes(b"longer")
    with site.catalog.writing() as session:
        session.execute(update(Product).values(number=0))  # as if from a backup
    (store.root / "S5P" / "stranger").write_bytes(b"?")
    record_of(site, products[2]).with_name("bad.jsonl").write_bytes(b"?")
    limited = Principal("admin of S3", frozenset(["admin"]), frozenset(["S3"]))
    told = list(reconciliation.reconcile(site, limited))
    assert {item.kind for item in told if isinstance(item, reconciliation.Finding)} == {
        "wrong_size",
        "unregistered",
    }
    assert all(
        item.product_id == products[0].id
        for item in told
        if isinstance(item, reconciliation.Finding)
    )
    assert {item.key for item in told if isinstance(item, reconciliation.Progress)} == {""}
    everything = findings(site)
    assert (
        sorted(everything.values())
        == ["unknown", "unreadable"] + ["unregistered"] * 3 + ["wrong_size"] * 3
    )


def test_reconcile_passes_over_marks_of_directories_and_names_keys_that_cannot_be_ours(
    site: Facility, monkeypatch
) -> None:
    put(site, "a")
    listed = site.storage.list
    foreign = [Stat(key, size, START) for key, size in (("dir/", 0), ("a//b", 5), ("x\\y", 1))]

    def listing(prefix="", after=""):
        return iter([*([] if prefix else foreign), *listed(prefix, after)])

    monkeypatch.setattr(site.storage, "list", listing)
    for page in (1, 2, 1000):
        monkeypatch.setattr(reconciliation, "_PAGE", page)
        assert findings(site) == {"a//b": "unknown", "x\\y": "unknown"}


def test_reconcile_of_an_empty_store_reads_the_catalog_page_by_page(
    site: Facility, monkeypatch
) -> None:
    products = [put(site, f"n{number}") for number in range(9)]
    (store,) = site.storage.stores.values()
    for product in products:
        (store.root / product.directory / product.name).unlink()
    with site.catalog.writing() as session:
        session.execute(update(Product).values(available_at=START))
    monkeypatch.setattr(reconciliation, "_PAGE", 2)
    statements: list[str] = []

    def note(connection, cursor, statement, *_) -> None:
        statements.append(statement)

    event.listen(site.catalog._engine, "before_cursor_execute", note)
    try:
        missing = [kind for kind in findings(site).values() if kind == "missing"]
    finally:
        event.remove(site.catalog._engine, "before_cursor_execute", note)
    assert len(missing) == len(products)
    ranges = [statement for statement in statements if "FROM file JOIN product" in statement]
    assert len(ranges) >= len(products) / 2
    assert all("LIMIT" in statement for statement in ranges)
