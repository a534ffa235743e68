"""The budget of a process: bounded, and no class of requests can starve another."""

from __future__ import annotations

import pytest

from admin_api.errors import Busy
from admin_api.services.transfers import Kind, Need, Transfers

MIB = 1 << 20


def fill(transfers: Transfers, kind: Kind, need: Need) -> list:
    """Take until the class is told to come again."""
    held = []
    for _ in range(10_000):
        try:
            held.append(transfers.take(kind, need))
        except Busy:
            return held
    raise AssertionError("there is no bound")


@pytest.mark.parametrize("greedy", Kind)
@pytest.mark.parametrize("need", [Need(threads=1), Need(memory=MIB), Need(sources=1)])
def test_no_class_can_starve_another(greedy: Kind, need: Need) -> None:
    transfers = Transfers(32, 64 * MIB, 32)
    fill(transfers, greedy, need)
    for other in set(Kind) - {greedy}:
        assert len(fill(transfers, other, need)) > 0


def test_whatever_is_asked_at_once_the_sum_is_bounded_and_all_of_it_comes_back() -> None:
    transfers = Transfers(32, 64 * MIB, 32)
    held = [hold for kind in Kind for hold in fill(transfers, kind, Need(1, MIB, 1))]
    assert len(held) == 32
    for hold in held:
        hold.give_back()
        hold.give_back()
    assert all(transfers.held(kind) == Need() for kind in Kind)
    assert len(fill(transfers, Kind.UPLOAD, Need(threads=1))) == 20


def test_what_is_larger_than_the_share_of_its_class_is_served_alone() -> None:
    transfers = Transfers(32, 64 * MIB, 32)
    fill(transfers, Kind.DOWNLOAD, Need(memory=MIB))
    with transfers.take(Kind.UPLOAD, Need(memory=30 * MIB)):
        with pytest.raises(Busy):
            transfers.take(Kind.UPLOAD, Need(memory=30 * MIB))
    transfers.take(Kind.UPLOAD, Need(memory=30 * MIB))


def test_who_works_on_many_files_leaves_room_for_those_who_come_next() -> None:
    transfers = Transfers(32, 64 * MIB, 32)
    shares = [
        transfers.take_some(Kind.INGEST, Need(memory=6 * MIB, sources=1), 8).count for _ in "abc"
    ]
    assert shares[0] > 1
    assert min(shares) >= 1
