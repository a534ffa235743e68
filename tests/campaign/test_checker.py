"""The checker itself: it is silent about a right history and names each kind of wrong one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.campaign.checker import check, check_events
from tests.campaign.history import History, Operation, Sighting

NAME = "product"


class Story:
    """A history told line by line; every request takes a second, one after the other."""

    def __init__(self) -> None:
        self.now = 0.0
        self.history = History(clock=self._tick)

    def _tick(self) -> float:
        self.now += 1
        return self.now

    def tell(self, kind: str, *seen: Sighting, outcome: str = "ok", **more: Any) -> Operation:
        worker, status = more.pop("worker", "1"), more.pop("status", None)
        result = more.pop("result", None)
        operation = self.history.begin(worker, 0, kind, NAME, **more)
        operation.seen, operation.status, operation.result = list(seen), status, result
        self.history.end(operation, outcome)
        return operation

    def ingest(self, generation: int, sha: str, policy: str = "replace", **more: Any) -> Operation:
        answered = more.get("outcome", "ok") == "ok"
        seen = [available(generation, sha)] if answered else []
        more.setdefault("result", "created" if answered else None)
        return self.tell("ingest", *seen, way="upload", policy=policy, sent={"file": [sha]}, **more)

    def remove(self, generation: int, **more: Any) -> Operation:
        operation = self.tell("remove", **more)
        operation.request["cause"] = f"removal-{operation.number}"
        if operation.outcome == "ok":
            operation.seen = [removed(generation, operation.request["cause"])]
        return operation

    def hold(self, generation: int, sha: str, reason: str | None) -> Operation:
        return self.tell("keep", available(generation, sha, hold=reason), hold=reason)

    def show(self, *seen: Sighting) -> Operation:
        return self.tell("list", *(seen or [Sighting("absent", NAME)]))

    def end(self, *there: Sighting, gone: tuple[Sighting, ...] = ()) -> None:
        self.tell("list", *there, worker="end")
        self.tell("list removed", *gone, worker="end")

    def kinds(self) -> set[str]:
        return {violation.kind for violation in check(self.history.operations)}


def available(generation: int, sha: str, **more: Any) -> Sighting:
    return Sighting("available", NAME, "id", generation, f"digest-{sha}", {"file": sha}, **more)


def removed(generation: int, cause: str, **more: Any) -> Sighting:
    return Sighting("removed", NAME, "id", generation, cause=cause, **more)


def read(story: Story, generation: int, sha: str | None, **more: Any) -> None:
    story.tell("read", path="file", generation=generation, sha256=sha, whole=True, **more)


def test_a_right_history_has_no_violations() -> None:
    story = Story()
    story.ingest(1, "a")
    story.hold(1, "a", "reason")
    story.show(available(1, "a", hold="reason"))
    story.tell("remove", outcome="refused", status=409)
    story.hold(1, "a", None)
    story.ingest(2, "b", result="replaced")
    read(story, 2, "b")
    lost = story.ingest(0, "c", outcome="unknown")  # no answer, and it came to be
    story.show(available(3, "c"))
    removal = story.remove(3, outcome="unknown")
    story.show()
    story.ingest(4, "d", outcome="unknown")  # no answer, and nothing came of it
    story.end(
        gone=(
            removed(1, "replaced by generation 2"),
            removed(2, "replaced by generation 3"),
            removed(3, f"removal-{removal.number}"),
        )
    )
    assert lost.outcome == "unknown"
    assert check(story.history.operations) == []


def test_an_answer_that_is_given_again_says_what_was_true_the_first_time() -> None:
    story = Story()
    first = story.ingest(1, "a")
    story.hold(1, "a", "reason")
    story.ingest(1, "a", replay=first.number)
    story.hold(1, "a", None)
    skipped = story.ingest(1, "a", result="skipped")
    removal = story.remove(1)
    story.ingest(1, "a", replay=skipped.number, result="skipped")
    story.end(gone=(removed(1, f"removal-{removal.number}"),))
    assert check(story.history.operations) == []


def acknowledged_product_vanishes(story: Story) -> None:
    story.ingest(1, "a")
    story.show()
    story.end(available(1, "a"))


def acknowledged_product_leaves_no_trace(story: Story) -> None:
    story.ingest(1, "a")
    story.end()


def removed_product_comes_back(story: Story) -> None:
    story.ingest(1, "a")
    removal = story.remove(1)
    story.show(available(1, "a"))
    story.end(gone=(removed(1, f"removal-{removal.number}"),))


def older_generation_comes_back(story: Story) -> None:
    story.ingest(1, "a")
    story.ingest(2, "b", result="replaced")
    story.show(available(1, "a"))
    story.end(available(2, "b"), gone=(removed(1, "replaced by generation 2"),))


def bytes_of_nobody(story: Story) -> None:
    story.ingest(1, "a")
    read(story, 1, "x")
    story.end(available(1, "a"))


def product_of_a_refused_request(story: Story) -> None:
    story.ingest(1, "a", outcome="refused")
    story.show(available(1, "a"))
    story.end(available(1, "a"))


def product_of_nobody(story: Story) -> None:
    story.show(Sighting("available", NAME, "id", 1, "digest"))
    story.end(Sighting("available", NAME, "id", 1, "digest"))


def refused_request_that_shows_later(story: Story) -> None:
    story.ingest(1, "a", outcome="refused", status=409)
    story.show(Sighting("available", NAME, "id", 1, "digest"))
    story.ingest(2, "b", outcome="unknown")
    story.end(Sighting("available", NAME, "id", 1, "digest"))


def mixture_of_two_requests(story: Story) -> None:
    for first, second in (("a", "b"), ("c", "d")):
        story.tell(
            "ingest", outcome="unknown", way="tar", policy="replace",
            sent={"one": [first], "two": [second]},
        )  # fmt: skip
    mixed = Sighting("available", NAME, "id", 1, "digest", {"one": "a", "two": "d"})
    story.show(mixed)
    story.end(mixed)


def hold_forgotten(story: Story) -> None:
    story.ingest(1, "a")
    story.hold(1, "a", "reason")
    story.show(available(1, "a"))
    story.end(available(1, "a", hold="reason"))


def held_product_removed(story: Story) -> None:
    story.ingest(1, "a")
    story.hold(1, "a", "reason")
    removal = story.remove(1)
    story.end(gone=(removed(1, f"removal-{removal.number}"),))


def skip_that_replaces(story: Story) -> None:
    story.ingest(1, "a")
    story.ingest(2, "b", policy="skip")
    story.end(available(2, "b"), gone=(removed(1, "replaced by generation 2"),))


def two_products_of_one_name(story: Story) -> None:
    story.ingest(1, "a")
    story.ingest(2, "b")
    story.end(available(1, "a"), available(2, "b"))


def number_given_twice(story: Story) -> None:
    story.ingest(1, "a")
    removal = story.remove(1)
    story.ingest(1, "b")
    story.end(available(1, "b"), gone=(removed(1, f"removal-{removal.number}"),))


def replay_with_another_answer(story: Story) -> None:
    first = story.ingest(1, "a")
    story.ingest(1, "a", replay=first.number, result="skipped")
    story.end(available(1, "a"))


def unreadable(story: Story) -> None:
    story.ingest(1, "a")
    read(story, 1, None, outcome="refused", status=404)
    story.end(available(1, "a"))


def two_files_for_one_path(story: Story) -> None:
    for sha in ("a", "b"):
        story.tell("file", session="s", path="file", sha256=sha)
    story.end()


@pytest.mark.parametrize(
    ("tell", "kind"),
    [
        (acknowledged_product_vanishes, "acknowledged and gone"),
        (acknowledged_product_leaves_no_trace, "acknowledged and lost"),
        (removed_product_comes_back, "ghost"),
        (older_generation_comes_back, "ghost"),
        (bytes_of_nobody, "foreign bytes"),
        (product_of_a_refused_request, "refused and there all the same"),
        (product_of_nobody, "ghost"),
        (refused_request_that_shows_later, "refused and there all the same"),
        (mixture_of_two_requests, "foreign bytes"),
        (hold_forgotten, "hold lost"),
        (held_product_removed, "held and removed"),
        (skip_that_replaces, "replaced without leave"),
        (two_products_of_one_name, "two products"),
        (number_given_twice, "generation given twice"),
        (replay_with_another_answer, "replayed otherwise"),
        (unreadable, "acknowledged and unreadable"),
        (two_files_for_one_path, "two for one path"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_each_broken_promise_is_named(tell: Callable[[Story], None], kind: str) -> None:
    story = Story()
    tell(story)
    assert kind in story.kinds(), story.kinds()


def test_an_event_that_comes_twice_or_not_at_all_is_named() -> None:
    story = Story()
    story.ingest(1, "a")
    removal = story.remove(1)
    born = {"kind": "product.ingested", "product_name": NAME, "detail": {"generation": 1}}
    cause = removal.request["cause"]
    died = {"kind": "product.removed", "product_name": NAME, "detail": {"cause": cause}}
    operations = story.history.operations
    assert check_events(operations, [born, died]) == []
    assert [item.kind for item in check_events(operations, [born, died, died])] == ["event twice"]
    assert [item.kind for item in check_events(operations, [died])] == ["event missing"]
    assert [item.kind for item in check_events(operations, [born])] == ["event missing"]
