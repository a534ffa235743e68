"""Records: lines with a checksum, read whatever became of them."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admin_api.errors import InvalidKey
from admin_api.products import records
from admin_api.products.names import check_name
from admin_api.products.records import Flaw, RecordedFile, Statement, parse_records

NOW = datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)


def statement(**changes: object) -> Statement:
    content = {
        "state": "available",
        "id": "p1",
        "name": "näme.nc",
        "generation": 1,
        "number": 1,
        "time": NOW,
        "directory": "unsorted/näme.nc",
        "subject": "somebody",
        "files": (
            RecordedFile(
                path="a/b.nc",
                size=5,
                sha256="0" * 64,
                md5="1" * 32,
                key="unsorted/näme.nc/a/b.nc",
            ),
        ),
    }
    return Statement(**(content | changes))


def written(**changes: object) -> bytes:
    """A line whose checksum is right, whatever it says: not through the checks of the writer."""
    content = json.loads(statement().line())
    del content["check"]
    body = json.dumps(content | changes).encode()
    return body[:-1] + b',"check":"sha256:' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def parsed(data: bytes) -> list[Statement | Flaw]:
    return [item if isinstance(item, Flaw) else item[1] for item in parse_records([data])]


def test_a_line_comes_back_as_it_was_written_in_whatever_pieces_it_arrives() -> None:
    lines = [statement(number=number).line() for number in (1, 2, 3)]
    data = b"".join(lines)
    for size in (1, 7, len(data)):
        chunks = [data[at : at + size] for at in range(0, len(data), size)]
        found = [item[1] for item in parse_records(chunks)]
        assert found == [statement(number=number) for number in (1, 2, 3)]


@given(name=st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable()))
def test_any_name_that_a_product_can_have_survives_being_written(name: str) -> None:
    directory = f"unsorted/{name}"
    try:
        check_name(name)
    except InvalidKey:
        return
    made = statement(name=name, directory=directory, registered=True, hold_reason=name)
    assert made.line().count(b"\n") == 1
    assert parsed(made.line()) == [made]


def test_a_line_that_is_older_than_checksums_is_read() -> None:
    content = json.loads(statement().line())
    del content["check"]
    old = json.dumps(content | {"version": 1}).encode() + b"\n"
    assert parsed(old) == [statement(version=1)]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_flipped_bit_is_believed(data) -> None:
    line = bytearray(statement().line().rstrip(b"\n"))
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] ^= 1 << data.draw(st.integers(0, 7))
    for item in parsed(bytes(line)):
        assert isinstance(item, Flaw), bytes(line)


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_no_cut_line_is_believed(cut: int) -> None:
    line = statement().line().rstrip(b"\n")
    found = parsed(line[: cut % len(line)])
    assert found
    assert all(isinstance(item, Flaw) for item in found)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_garbage_is_told_and_never_raised(data: bytes) -> None:
    assert parsed(data)
    assert all(isinstance(item, Flaw) for item in parsed(data))


FILE = json.loads(statement().line())["files"][0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\0" * 500, "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"version":1,"number":' + b"9" * 10_000 + b"}", "no"),
        (b"[1]", "no statement"),
        (written(version=99), "version that is not known"),
        (statement().line().replace(b'"check"', b'"chick"'), "checksum is gone"),
        (statement().line().replace(b"somebody", b"somebodY"), "checksum is another"),
        (written(number=0), "number"),
        (written(generation=2**31), "generation"),
        (written(time="0001-01-01T00:00:00+14:00"), "time"),
        (written(time="2026-11-01T12:00:00"), "time"),
        (written(subject="a\0b"), "NUL"),
        (written(name="a/b"), "slash"),
        (written(id=".."), "'..'"),
        (written(directory=""), "directory"),
        (written(directory="unsorted"), "directory"),
        (written(directory="../näme.nc"), "'..'"),
        (written(directory=".products/näme.nc"), "its own files"),
        (written(files=[FILE | {"key": "../../etc/passwd"}]), "'..'"),
        (written(files=[FILE | {"key": ".products/00/x.jsonl"}]), "its own files"),
        (written(registered=True, files=[FILE | {"key": "incoming/s/x"}]), "its own files"),
        (written(files=[FILE | {"key": "unsorted/other/b.nc"}]), "outside of the product"),
        (written(files=[FILE | {"path": "../b.nc"}]), "'..'"),
        (written(files=[FILE, FILE]), "twice"),
        (written(files=[FILE | {"size": 2**62}, FILE | {"size": 2**62, "path": "c"}]), "twice"),
        (written(files=[]), "files"),
        (written(state="removed"), "files"),
        (written(files=[FILE | {"sha256": "xyz"}]), "sha256"),
    ],
)
def test_what_is_no_statement_of_ours_is_told_with_its_reason(line: bytes, said: str) -> None:
    (found,) = parsed(line)
    assert isinstance(found, Flaw)
    assert said in found.reason


def test_one_bad_line_of_many_costs_no_other() -> None:
    data = statement(number=1).line() + b"garbage\n" + statement(number=3).line()
    first, bad, last = parsed(data)
    assert (first, last) == (statement(number=1), statement(number=3))
    assert isinstance(bad, Flaw)
    assert bad.line == 2


def test_nothing_is_cut_at_the_limit_of_a_line(monkeypatch) -> None:
    line = statement().line()
    monkeypatch.setattr(records, "MAX_LINE_BYTES", len(line) - 2)
    first, second = parsed(line + b"\n" + line[:-1])
    assert isinstance(first, Flaw)
    assert isinstance(second, Flaw)
    assert "longer than" in first.reason
    monkeypatch.setattr(records, "MAX_LINE_BYTES", len(line) - 1)
    assert parsed(line + line[:-1]) == [statement(), statement()]
