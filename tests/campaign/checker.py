"""Compares a history with the promises; pure, and itself tested with histories that break them.

Every generation of a product has a *birth* and perhaps a *death*, each somewhere between the
start of the request that caused it and the moment it was known (for ever, if that request was
never answered).  Which request a birth belongs to is known from the bytes (no two requests send
the same), a death's from the cause in the tombstone.  From that:

- between the end of its birth and the start of its death a generation is certainly there: an
  answer that says otherwise, two such generations at once, or no trace of it at the end is a
  violation (acknowledged loss; exactly one product per name);
- before the start of its birth and after the end of its death it is certainly not there
  (ghosts, states that go backwards);
- what is shown and read is what one request sent, whole (no foreign byte, no mixture), and no
  request that was refused;
- holds and retention dates are registers of a generation: what is shown was written, and not
  certainly overwritten; nobody removes or replaces what was held all the while.

Decided: each of these for every single answer.  Not decided: whether *one* order of all requests
explains all answers together (linearizability in full), what happened within the windows of
requests without an answer, and how long anything took.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.campaign.bodies import Bodies
from tests.campaign.history import Operation, Sighting

_REMOVAL = re.compile(r"removal-(\d+)")
_REPLACED = re.compile(r"replaced by generation (\d+)")


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept, in a sentence, with the requests that show it."""

    kind: str
    name: str
    sentence: str
    operations: tuple[int, ...] = ()

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.operations))
        return f"{self.kind}: {self.name}: {self.sentence}" + (f" [{numbers}]" if numbers else "")


@dataclass
class Generation:
    """What is known of one generation of one name."""

    number: int
    ids: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    files: list[tuple[Operation, dict[str, str]]] = field(default_factory=list)
    sightings: list[tuple[Operation, Sighting]] = field(default_factory=list)
    #: The ingests that can have made it; empty: not known which.
    makers: list[Operation] = field(default_factory=list)
    birth: tuple[float, float] = (-math.inf, math.inf)
    death: tuple[float, float] = (math.inf, math.inf)
    killer: Operation | None = None
    successor: int | None = None
    #: It was given to several products; nothing more can be said of it.
    is_ambiguous: bool = False

    def certainly_alive(self, start: float, end: float) -> bool:
        """At every moment from ``start`` to ``end``."""
        return self.birth[1] < start and end < self.death[0]


def check(
    operations: Sequence[Operation], bodies: Bodies | None = None, is_ended: bool = True
) -> list[Violation]:
    """Every violation in a history.

    With ``is_ended`` the last answers (worker ``end``) list all that is there and all tombstones,
    after everything has come to rest.
    """
    found = list(_unexpected(operations))
    found += _sessions(operations)
    by_name: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        names = {operation.name} | {item.name for item in operation.seen}
        for name in names - {""}:
            by_name[name].append(operation)
    for name, those in sorted(by_name.items()):
        found += _Name(name, those, bodies, is_ended).check()
    return _together(found)


def _together(found: Iterable[Violation]) -> list[Violation]:
    """One line for what many answers show."""
    first: dict[tuple[str, str, str], Violation] = {}
    count: Counter[tuple[str, str, str]] = Counter()
    for violation in found:
        what = (violation.kind, violation.name, violation.sentence)
        first.setdefault(what, violation)
        count[what] += 1
    return [
        replace(violation, sentence=f"{violation.sentence} (and {count[what] - 1} more answers)")
        if count[what] > 1
        else violation
        for what, violation in first.items()
    ]


def _unexpected(operations: Iterable[Operation]) -> Iterator[Violation]:
    for operation in operations:
        if operation.status == 500:
            yield Violation(
                "internal error", operation.name, f"{operation.kind} was answered 500",
                (operation.number,),
            )  # fmt: skip
        if operation.request.get("must") == "refused" and operation.outcome == "ok":
            yield Violation(
                "wrong digest taken", operation.name,
                f"bytes that do not have the announced digest were answered {operation.status}",
                (operation.number,),
            )  # fmt: skip
        if "broken" in operation.request:
            yield Violation(
                "broken archive", operation.name, operation.request["broken"], (operation.number,)
            )


def _sessions(operations: Iterable[Operation]) -> Iterator[Violation]:
    """Of two different files sent to one path of a session at most one is acknowledged."""
    taken: dict[tuple[str, str], Operation] = {}
    for operation in operations:
        if operation.kind != "file" or operation.outcome != "ok":
            continue
        place = (operation.request["session"], operation.request["path"])
        first = taken.setdefault(place, operation)
        if first.request["sha256"] != operation.request["sha256"]:
            yield Violation(
                "two for one path", operation.name,
                f"different bytes for {place[1]} of one session were both acknowledged",
                (first.number, operation.number),
            )  # fmt: skip


class _Name:
    """All that happened to one name."""

    def __init__(
        self, name: str, operations: list[Operation], bodies: Bodies | None, is_ended: bool
    ) -> None:
        self.name = name
        self.operations = sorted(operations, key=lambda item: item.start)
        self.numbered = {item.number: item for item in operations}
        self.bodies = bodies
        self.is_ended = is_ended
        self.ingests = [item for item in self.operations if item.kind == "ingest"]
        self.keeps = [item for item in self.operations if item.kind == "keep"]
        self.generations: dict[int, Generation] = {}
        self.violations: list[Violation] = []

    def check(self) -> list[Violation]:
        self._collect()
        for generation in self.generations.values():
            self._identity(generation)
            self._born(generation)
        for generation in self.generations.values():
            self._died(generation)
        for generation in self.generations.values():
            if self.is_ended:
                self._at_the_end(generation)
        for generation in self.generations.values():
            self._seen_in_time(generation)
            self._register(generation, "hold")
            self._register(generation, "retention")
            self._guarded(generation)
        self._acknowledged()
        self._one_at_a_time()
        self._absences()
        self._reads()
        return self.violations

    def _say(self, kind: str, sentence: str, *operations: Operation | None) -> None:
        numbers = tuple(item.number for item in operations if item is not None)
        self.violations.append(Violation(kind, self.name, sentence, numbers))

    # -- what is known -----------------------------------------------------------------------
    def _collect(self) -> None:
        for operation in self.operations:
            available = []
            for item in operation.seen:
                if item.name != self.name or item.state == "absent":
                    continue
                generation = self.generations.setdefault(
                    item.generation, Generation(item.generation)
                )
                generation.ids.add(item.id)
                if item.digest is not None:
                    generation.digests.add(item.digest)
                if item.files is not None:
                    generation.files.append((operation, item.files))
                generation.sightings.append((operation, item))
                if item.state == "available":
                    available.append(item)
            if len(available) > 1:
                self._say("two products", f"{len(available)} are listed at once", operation)

    def _identity(self, generation: Generation) -> None:
        if len(generation.digests) > 1 or len(generation.ids) > 1:
            self._say(
                "generation given twice",
                f"generation {generation.number} was {len(generation.digests)} different "
                f"products under {len(generation.ids)} ids",
                *[operation for operation, _ in generation.sightings[:2]],
            )
            generation.is_ambiguous = True

    def _born(self, generation: Generation) -> None:
        makers: list[Operation] = []
        for operation, files in generation.files:
            candidates = [item for item in self.ingests if _fits(files, item.request["sent"])]
            if not candidates:
                self._foreign(generation, operation, files)
            elif all(item.outcome == "refused" for item in candidates):
                self._say(
                    "refused and there all the same",
                    f"generation {generation.number} has the bytes of a request that was refused",
                    *candidates, operation,
                )  # fmt: skip
            makers = candidates or makers
        acknowledged = [
            operation
            for operation, _ in generation.sightings
            if operation.kind == "ingest" and operation not in makers
        ]
        generation.makers = [item for item in (*makers, *acknowledged) if item.outcome != "refused"]
        seen = min((_end(operation) for operation, _ in generation.sightings), default=math.inf)
        possible = generation.makers or [
            item for item in self.ingests if item.outcome == "unknown" and item.start < seen
        ]
        if not possible and not generation.files:
            refused = [item for item in self.ingests if item.start < seen and item.status]
            self._say(
                "refused and there all the same" if refused else "ghost",
                f"generation {generation.number} is there, and "
                + (
                    "every request that can have made it was refused"
                    if refused
                    else "none was made"
                ),
                generation.sightings[0][0],
            )
        generation.birth = (
            min((item.start for item in possible), default=-math.inf),
            seen,
        )

    def _foreign(self, generation: Generation, operation: Operation, files: dict[str, str]) -> None:
        senders = set()
        if self.bodies is not None:
            senders = {body.name for sha in files.values() if (body := self.bodies.find(sha))}
        what = f"bytes sent for {', '.join(sorted(senders))}" if senders else "bytes nobody sent"
        self._say(
            "foreign bytes", f"generation {generation.number} has {what}, as no request sent them",
            operation,
        )  # fmt: skip

    def _died(self, generation: Generation) -> None:
        tombstones = [
            (operation, item) for operation, item in generation.sightings if item.state == "removed"
        ]
        if not tombstones:
            return
        earliest, latest = generation.birth[0], math.inf
        cause = next((item.cause for _, item in tombstones if item.cause), "") or ""
        if match := _REMOVAL.fullmatch(cause):
            generation.killer = self.numbered.get(int(match[1]))
            if generation.killer is None or generation.killer.outcome == "refused":
                self._say(
                    "removed by nobody",
                    f"generation {generation.number} was removed by a request that was refused or "
                    "never made",
                    generation.killer, tombstones[0][0],
                )  # fmt: skip
        elif match := _REPLACED.fullmatch(cause):
            generation.successor = int(match[1])
        elif cause == "replaced":  # all that a rebuilt catalog knows
            later = [number for number in self.generations if number > generation.number]
            generation.successor = min(later, default=None)
        successor = self.generations.get(generation.successor or 0)
        if generation.successor is not None and successor is None and self.is_ended:
            self._say(
                "replaced by nothing",
                f"generation {generation.number} is said to be {cause}, of which there is no trace",
                tombstones[0][0],
            )
        if generation.killer is not None:
            earliest, latest = generation.killer.start, _end(generation.killer)
        elif successor is not None:
            earliest, latest = successor.birth
            makers = [item for item in successor.makers if item.request["policy"] == "replace"]
            if successor.makers and not makers:
                self._say(
                    "replaced without leave",
                    f"generation {generation.number} was replaced by a request that did not ask "
                    "for it",
                    *successor.makers[:1],
                )  # fmt: skip
        seen = min((_end(operation) for operation, _ in tombstones), default=math.inf)
        generation.death = (earliest, min(latest, seen))
        if generation.is_ambiguous:
            generation.death = (-math.inf, math.inf)

    # -- what must hold ----------------------------------------------------------------------
    def _seen_in_time(self, generation: Generation) -> None:
        for operation, item in generation.sightings:
            if item.state != "available":
                if _end(operation) < generation.death[0]:
                    self._say(
                        "removed too early",
                        f"generation {generation.number} is a tombstone before its removal",
                        operation, generation.killer,
                    )  # fmt: skip
                continue
            if _is_replay(operation):
                continue  # it says what was true when the first request was answered
            if operation.kind == "ingest" and operation.result != "skipped":
                continue  # its own birth: available at a moment, perhaps not any more when said
            if operation.start > generation.death[1]:
                self._say(
                    "ghost", f"generation {generation.number} is there after its removal",
                    generation.killer, operation,
                )  # fmt: skip
            if _end(operation) < generation.birth[0]:
                self._say(
                    "ghost", f"generation {generation.number} is there before it was sent",
                    operation,
                )  # fmt: skip

    def _at_the_end(self, generation: Generation) -> None:
        if generation.birth[1] == math.inf:
            return
        last = [
            (operation, item)
            for operation, item in generation.sightings
            if operation.worker == "end" and operation.kind in ("list", "list removed")
        ]
        if not last:
            acknowledged = [item for item in generation.makers if item.outcome == "ok"]
            self._say(
                "acknowledged and lost",
                f"generation {generation.number} has left no trace, not even a tombstone",
                *acknowledged[:1],
            )
            # It went, nobody knows when: said once is enough.
            generation.death = (generation.birth[0], math.inf)
        for operation, item in last:
            if item.state == "removed" and item.hold is not None:
                self._say(
                    "held and removed",
                    f"generation {generation.number} went ({item.cause}) under the hold "
                    f"{item.hold}",
                    generation.killer, operation,
                )  # fmt: skip

    def _acknowledged(self) -> None:
        """What the answers of ingests and removals themselves say."""
        answers: dict[int, tuple[str, int, str | None]] = {}
        for operation in self.operations:
            if operation.outcome != "ok" or not operation.seen:
                continue
            item = operation.seen[0]
            if operation.kind == "ingest":
                if item.files is not None and not _fits(item.files, operation.request["sent"]):
                    self._say(
                        "acknowledged other bytes",
                        f"the answer ({operation.result}) lists files that the request did not "
                        "send",
                        operation,
                    )
                answers[operation.number] = (item.id, item.generation, operation.result)
                first = answers.get(operation.request.get("replay", 0))
                if first is not None and first != answers[operation.number]:
                    self._say(
                        "replayed otherwise",
                        f"an Idempotency-Key was answered {first}, then "
                        f"{answers[operation.number]}",
                        self.numbered[operation.request["replay"]], operation,
                    )  # fmt: skip
            elif operation.kind == "remove" and item.state == "available":
                self._say(
                    "removed and there all the same",
                    f"the answer to a removal shows generation {item.generation} available",
                    operation,
                )

    def _one_at_a_time(self) -> None:
        lives = sorted(
            (item for item in self.generations.values() if item.birth[1] < item.death[0]),
            key=lambda item: item.birth[1],
        )
        for earlier, later in zip(lives, lives[1:], strict=False):
            if earlier.certainly_alive(later.birth[1], later.birth[1]):
                self._say(
                    "two products",
                    f"generation {later.number} came while generation {earlier.number} was there",
                    *later.makers[:1],
                )

    def _absences(self) -> None:
        for operation in self.operations:
            if operation.kind not in ("list", "show") or operation.outcome == "unknown":
                continue
            shown = [item for item in operation.seen if item.name == self.name]
            absent = [item for item in shown if item.state != "available"]
            present = {item.generation for item in shown if item.state == "available"}
            if not absent and not present:
                continue
            asked = operation.request.get("id")
            for generation in self.generations.values():
                if asked is not None and asked not in generation.ids:
                    continue  # the id of an earlier product of that name
                if generation.number not in present and generation.certainly_alive(
                    operation.start, _end(operation)
                ):
                    what = f"generation {min(present)}" if present else "nothing"
                    self._say(
                        "acknowledged and gone",
                        f"generation {generation.number} is there, and {what} is shown",
                        *generation.makers[:1], operation,
                    )  # fmt: skip

    def _reads(self) -> None:
        for operation in self.operations:
            if operation.kind == "read archive":
                self._read_archive(operation)
            if operation.kind != "read":
                continue
            asked, end = operation.request, _end(operation)
            generation = self.generations.get(asked["generation"])
            if operation.outcome != "ok":
                if (
                    operation.status in (404, 410)
                    and generation is not None
                    and generation.certainly_alive(operation.start, end)
                ):
                    self._say(
                        "acknowledged and unreadable",
                        f"generation {generation.number}: {asked['path']} is answered "
                        f"{operation.status} ({operation.code})",
                        *generation.makers[:1], operation,
                    )  # fmt: skip
                elif operation.worker == "end":
                    self._say(
                        "acknowledged and unreadable",
                        f"at the end {asked['path']} of generation {asked['generation']} is "
                        f"answered {operation.status} ({operation.code})",
                        *(generation.makers[:1] if generation else ()), operation,
                    )  # fmt: skip
                continue
            self._bytes(operation, {asked["path"]: asked["sha256"]})

    def _read_archive(self, operation: Operation) -> None:
        files = operation.request.get("files")
        if files is None:
            return
        if not any(_fits(files, item.request["sent"]) for item in self.ingests):
            self._say("foreign bytes", "an archive holds what no request sent", operation)
        self._bytes(operation, files)

    def _bytes(self, operation: Operation, files: dict[str, str]) -> None:
        """The bytes that came are those of a generation that can have been there."""
        for path, sha256 in files.items():
            owners = [
                item
                for item in self.generations.values()
                if any(listed.get(path) == sha256 for _, listed in item.files)
            ]
            sent = any(sha256 in item.request["sent"].get(path, ()) for item in self.ingests)
            if not sent:
                self._say("foreign bytes", f"{path} holds what no request sent there", operation)
            elif owners and all(
                operation.start > item.death[1] or _end(operation) < item.birth[0]
                for item in owners
            ):
                self._say("ghost", f"{path} is that of a generation that is not there", operation)

    def _register(self, generation: Generation, which: str) -> None:
        """Holds, or retention dates: what is shown was written and is not overwritten."""
        writes = [
            item
            for item in self.keeps
            if which in item.request
            and item.outcome != "refused"
            and (item.outcome == "unknown" or generation.number in _generations(item))
        ]
        # The answer shows the product as it is then, perhaps with another's later change.
        certain = [
            item
            for item in writes
            if any(
                _same(item.request[which], getattr(shown, which))
                for shown in item.seen
                if shown.generation == generation.number
            )
        ]
        for operation, item in generation.sightings:
            if item.state != "available" or operation.end is None or _is_replay(operation):
                continue
            value = getattr(item, which)
            sources = [
                write
                for write in writes
                if _same(write.request[which], value) and write.start <= _end(operation)
            ]
            before = [write for write in certain if _end(write) < operation.start]
            if operation.request.get("hold") is not None and which == "hold":
                before.append(operation)  # its own answer must not be as if it had not been
            initial = value is None and not before
            if not initial and not any(
                not any(_end(source) < later.start for later in before) for source in sources
            ):
                self._say(
                    f"{which} lost",
                    f"generation {generation.number} shows {value}",
                    *before[-1:], operation,
                )  # fmt: skip

    def _guarded(self, generation: Generation) -> None:
        """Nothing ends a generation that is held from before that request began until it ended."""
        if generation.death[0] == math.inf:
            return
        for hold in self.keeps:
            if (
                hold.outcome != "ok"
                or not hold.request.get("hold")
                or generation.number not in _generations(hold)
                or generation.death[0] <= _end(hold)
            ):
                continue
            released = any(
                item.request["hold"] is None
                and item.outcome != "refused"
                and item.start <= generation.death[1]
                and _end(item) >= hold.start
                for item in self.keeps
                if "hold" in item.request
            )
            if not released:
                self._say(
                    "held and removed",
                    f"generation {generation.number} was held and has gone",
                    hold, generation.killer,
                )  # fmt: skip


def check_events(
    operations: Sequence[Operation], events: Iterable[dict[str, Any]]
) -> list[Violation]:
    """The event log, where it is whole: each change once, and every acknowledged one."""
    found = []
    births: Counter[tuple[str, int]] = Counter()
    deaths: Counter[tuple[str, str]] = Counter()
    for event in events:
        name = event["product_name"]
        if event["kind"] in ("product.ingested", "product.replaced"):
            births[name, event["detail"]["generation"]] += 1
        elif event["kind"] == "product.removed":
            deaths[name, event["detail"]["cause"]] += 1
    for (name, what), count in [*births.items(), *deaths.items()]:
        if count > 1:
            found.append(Violation("event twice", name, f"{count} events say the same: {what}"))
    for operation in operations:
        if operation.outcome != "ok" or not operation.seen:
            continue
        item = operation.seen[0]
        if operation.kind == "ingest" and not births[item.name, item.generation]:
            found.append(
                Violation(
                    "event missing", item.name, f"none tells of generation {item.generation}",
                    (operation.number,),
                )
            )  # fmt: skip
        if operation.kind == "remove" and item.cause and not deaths[item.name, item.cause]:
            found.append(
                Violation(
                    "event missing", item.name, f"none tells of {item.cause}", (operation.number,)
                )
            )
    return found


def _fits(files: dict[str, str], sent: dict[str, list[str | None]]) -> bool:
    """Whether a request that sent ``sent`` can have made a product of ``files``."""
    if not files.keys() <= sent.keys():
        return False
    return all(files.get(path) in possible for path, possible in sent.items())


def _end(operation: Operation) -> float:
    """When the request can have had its effect at the latest."""
    if operation.outcome == "unknown" or operation.end is None:
        return math.inf
    return operation.end


def _is_replay(operation: Operation) -> bool:
    """Whether an Idempotency-Key came again: its answer is kept, and shows an earlier moment."""
    return "replay" in operation.request


def _generations(operation: Operation) -> set[int]:
    return {item.generation for item in operation.seen}


def _same(written: str | None, shown: str | None) -> bool:
    if written is None or shown is None:
        return written is shown
    return written == shown or written.removesuffix("Z") == shown.removesuffix(
        "+00:00"
    ).removesuffix("Z")
