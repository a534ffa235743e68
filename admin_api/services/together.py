"""Things that come at once are done together: group commit for the transactions of ingests.

While a transaction runs, those who want the same wait and are all done in the next one.  Nobody
waits for company: who comes alone is served at once.  Called by ``lifecycle``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

Asked = TypeVar("Asked")
Given = TypeVar("Given")


class _Waiting(Generic[Asked, Given]):
    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.is_served = False
        self.given: Given | BaseException | None = None


class Together(Generic[Asked, Given]):
    """One kind of thing; at most ``most`` of it are done in one go."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._serving = threading.Lock()
        self._changing = threading.Lock()
        self._waiting: list[_Waiting[Asked, Given]] = []

    def do(
        self, asked: Asked, action: Callable[[Sequence[Asked]], Sequence[Given | BaseException]]
    ) -> Given:
        """What ``action`` gives for ``asked``, done with what others ask meanwhile.

        ``action`` gives one result, or the error to be raised, for each that it is handed; what it
        raises itself is raised for all of them.
        """
        mine = _Waiting[Asked, Given](asked)
        with self._changing:
            self._waiting.append(mine)
        with self._serving:
            while not mine.is_served:
                with self._changing:
                    now, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                _serve(now, action)
        if isinstance(mine.given, BaseException):
            raise mine.given
        return cast("Given", mine.given)


def _serve(
    waiting: Sequence[_Waiting[Asked, Given]],
    action: Callable[[Sequence[Asked]], Sequence[Given | BaseException]],
) -> None:
    try:
        found = action([one.asked for one in waiting])
        for one, given in zip(waiting, found, strict=True):
            one.given = given
    except BaseException as error:  # noqa: BLE001 # raised for each of them
        for one in waiting:
            one.given = error
    finally:
        for one in waiting:
            one.is_served = True
