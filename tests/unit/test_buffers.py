"""Buffers that are used again, and what a body is received into."""

from __future__ import annotations

import io
import socket

import pytest
from gunicorn.http.body import Body, LengthReader

from admin_api.buffers import Buffers
from admin_api.errors import ClientStalled
from admin_api.services.pace import Pace
from admin_api.storage.multipart import PartBuffers
from admin_api.web.connections import PacedUnreader, fill


def test_a_buffer_that_nobody_holds_is_used_again() -> None:
    buffers = Buffers(10)
    first = buffers.take()
    place = id(first)
    del first
    assert id(buffers.take()) == place


def test_who_keeps_a_piece_keeps_its_bytes() -> None:
    buffers = Buffers(3)
    pieces = []
    for number in range(20):
        buffer = buffers.take()
        buffer[:] = bytes([number]) * 3
        pieces.append(memoryview(buffer)[1:2])
        del buffer
    assert b"".join(pieces) == bytes(range(20))


def test_an_upload_has_the_buffers_of_the_one_before_it() -> None:
    buffers = PartBuffers(8, 2)
    buffers.prepare()
    taken = [buffers.take(8) for _ in range(3)]
    places = {id(buffer) for buffer in taken}
    assert [len(buffer) for buffer in taken] == [8, 8, 8]
    del taken[0][3:]  # a last part is shorter, and not used again
    while taken:
        buffers.give(taken.pop())
    assert {id(buffers.take(8)), id(buffers.take(8))} <= places
    assert len(buffers.take(20)) == 20


@pytest.fixture
def connection():
    """A client, and the body of the 10 bytes that it sends; 4 were read with the head."""
    client, server = socket.socketpair()
    server.settimeout(0.2)
    unreader = PacedUnreader(server)
    unreader.begin(Pace(0))
    unreader.unread(b"0123")
    yield client, Body(LengthReader(unreader, 10))
    client.close()
    server.close()


def test_a_body_is_filled_in_from_what_was_read_ahead_and_the_connection(connection) -> None:
    client, body = connection
    client.sendall(b"456789GET /next")
    first, rest = bytearray(3), bytearray(20)
    assert fill(body, memoryview(first)) == 3
    assert fill(body, memoryview(rest)) == 7
    assert first + rest[:7] == b"0123456789"
    assert fill(body, memoryview(rest)) == 0
    assert body.reader.unreader.read() == b"GET /next"


def test_a_body_that_ends_early_or_stops_is_no_whole_one(connection) -> None:
    client, body = connection
    client.sendall(b"45")
    with pytest.raises(ClientStalled):
        fill(body, memoryview(bytearray(20)))
    assert body.failed
    client.close()
    assert fill(body, memoryview(bytearray(20))) == 0
    assert body.reader.length == 4


def test_a_body_of_no_known_length_is_not_filled_in() -> None:
    assert fill(io.BytesIO(b"x"), memoryview(bytearray(1))) is None
