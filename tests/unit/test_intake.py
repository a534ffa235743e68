"""Manifests of JSON lines, however they are cut and whatever is in them; things done together."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admin_api.errors import InvalidRequest
from admin_api.services import intake, stac
from admin_api.services.intake import Asked
from admin_api.services.together import Together


def _read(entry: object) -> Asked:
    if not isinstance(entry, dict):
        raise InvalidRequest("This is no object.")
    return Asked(entry, "", None)


def _told(chunks: Sequence[bytes], longest: int = 100) -> list[tuple[int, str | None]]:
    found = intake.lines(iter(chunks), _read, longest)
    return [(item.number, item.code) for item in found if item is not None]


@given(st.lists(st.integers(0, 60)), st.booleans(), st.sampled_from([b"\n", b"\r\n"]))
def test_lines_are_the_same_however_the_body_is_cut(cuts, has_bom, end) -> None:
    lines = [b'{"a": 1}', b"", b"{broken", b'{"b": "' + b"x" * 200 + b'"}', b'{"c": "\xff"}', b"7"]
    body = (b"\xef\xbb\xbf" if has_bom else b"") + end.join(lines)
    places = [0, *sorted(cut * len(body) // 60 for cut in cuts), len(body)]
    chunks = [body[start:stop] for start, stop in zip(places, places[1:], strict=False)]
    assert _told(chunks) == [
        (1, None),
        (3, "invalid_request"),
        (4, "too_large"),
        (5, "invalid_request"),
        (6, "invalid_request"),
    ]


def test_an_endless_line_takes_no_memory() -> None:
    def body() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 100_000
        yield b"\n{}"

    tracemalloc.start()
    assert [item for item in _told_of(body()) if item.code is None][0].number == 2
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def _told_of(chunks: Iterator[bytes]) -> list[intake.NewItem]:
    return [item for item in intake.lines(chunks, _read, 1 << 20) if item is not None]


def test_what_is_said_of_a_line_holds_nothing_of_it() -> None:
    (item,) = _told_of(iter([b'{"source": "https://x/?token=canary", broken}']))
    assert "canary" not in f"{item}"
    assert item.label == "line 1"


def test_a_stac_item_of_many_assets_is_a_product_of_many_files() -> None:
    item = json.loads(
        """{"type": "Feature", "id": "S2A", "assets": {
            "b02": {"href": "https://x.example/a/B02.jp2", "file:size": 5},
            "meta": {"href": "https://x.example/a/m.xml", "file:local_path": "meta/m.xml"},
            "look": {"href": "https://x.example/q.png", "roles": ["thumbnail"]}}}"""
    )
    assert stac.is_item(item)
    wanted = stac.wanted(item)
    assert wanted["name"] == "S2A"
    assert [file["path"] for file in wanted["files"]] == ["B02.jp2", "meta/m.xml"]
    item["assets"]["b02"]["href"] = "./B02.jp2"
    with pytest.raises(InvalidRequest, match="relative"):
        stac.wanted(item)


def test_those_who_come_while_one_is_served_are_served_at_once_and_each_its_own() -> None:
    together: Together[int, int] = Together(100)
    first, sizes, results = threading.Event(), [], {}
    entered = threading.Event()

    def action(asked: Sequence[int]) -> list[int | BaseException]:
        sizes.append(len(asked))
        entered.set()
        first.wait(30)
        return [ValueError(str(one)) if one % 7 == 3 else one * 2 for one in asked]

    def ask(number: int) -> None:
        try:
            results[number] = together.do(number, action)
        except ValueError as error:
            results[number] = str(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    threads[0].start()
    entered.wait(30)
    for thread in threads[1:]:
        thread.start()
    while len(together._waiting) < 19:
        pass
    first.set()
    for thread in threads:
        thread.join()
    assert sizes == [1, 19]
    expected = {number: str(number) if number % 7 == 3 else number * 2 for number in range(20)}
    assert results == expected
