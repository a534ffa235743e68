"""Bytes of the store on their way out.  Called by ``files`` and by prosEO's downloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flask import Response

from admin_api.services import retrieval
from admin_api.services.facility import Facility
from admin_api.services.transfers import Hold


class _Held:
    """Chunks that have room in this process's memory until the server closes them."""

    def __init__(self, chunks: Iterator[bytes], hold: Hold) -> None:
        self._chunks = chunks
        self._hold = hold

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        """Called by the server, whatever happened."""
        self._hold.give_back()


def streamed(facility: Facility, read: Callable[[], Iterator[bytes]]) -> Response:
    """What ``read`` gives, its first chunk being there before the status is sent; raises Busy."""
    hold = retrieval.room(facility)
    try:
        return Response(_Held(_primed(read()), hold), direct_passthrough=True)
    except BaseException:
        hold.give_back()
        raise


def _primed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """``chunks`` with the first one read, so that an error comes before the status is sent."""
    first = next(chunks, None)

    def rest() -> Iterator[bytes]:
        if first is not None:
            yield first
            yield from chunks

    return rest()
