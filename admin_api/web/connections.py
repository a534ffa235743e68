"""The connections of a server process: who gets a thread, when, and how they end.

gunicorn's threaded worker gives a thread to every new connection and lets it wait there for the
request; thousands of idle or trickling connections would starve all others.  Here one poller reads
the heads of all requests (and short bodies with them), and a request gets a thread when it is
there and when its class has one left (``services/transfers.py``); it is told to come again
otherwise.  Health and metrics have threads of their own.  Nothing waits for ever: every body keeps
a pace, and what a client still sends when it has its answer is read and forgotten by the poller.
Set up by ``web/server.py``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn.http.body import LengthReader
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from admin_api.errors import Busy, ClientStalled
from admin_api.services.pace import Pace
from admin_api.services.transfers import Hold, Kind, Need, Transfers
from admin_api.settings import LimitSettings, Settings
from admin_api.web import admission

log = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 64 * 1024
_READ_BYTES = 16 * 1024
_END_OF_HEAD = b"\r\n\r\n"
#: What the poller keeps of all requests that are not there yet, together.
_MAX_COLLECTED_BYTES = 16 << 20
#: How much of a refused body is read before the connection is closed, and for how long.
_FAREWELL_BYTES = 256 << 20
_FAREWELL_SECONDS = 10.0
_FAREWELL_READ = 256 << 10
#: Health and metrics fit into the system's buffers; who does not take them is not waited for.
_QUICK_SECONDS = 2.0
_QUICK_THREADS = 2
_SENT_AT_ONCE = 1 << 20
_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)
_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_CROWDED = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)


class Connection(TConn):  # type: ignore[misc]  # gunicorn has no types
    """A connection with what has been read of its next request."""

    def __init__(self, cfg: Any, client: socket.socket, address: Any, server: Any) -> None:
        super().__init__(cfg, client, address, server)
        self.head = b""
        #: How many bytes the request has with the part of its body that is waited for; 0: unknown.
        self.wanted = 0
        self.hold: Hold | None = None
        #: Whether it is answered at once, so that nobody waits for a client that takes it slowly.
        self.is_quick = False
        self.drained = 0

    @property
    def is_complete(self) -> bool:
        """Whether the request can be given to a thread."""
        if not self.wanted:
            end = self.head.find(_END_OF_HEAD)
            if end < 0:
                return False
            self.wanted = end + len(_END_OF_HEAD)
            self.wanted += admission.collected_bytes(self.head[: self.wanted])
        return len(self.head) >= self.wanted


class PatientWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threaded worker, with the heads of requests read by its poller."""

    settings: Settings
    transfers: Transfers

    def init_process(self) -> None:
        self._quick = {
            name: ThreadPoolExecutor(_QUICK_THREADS, thread_name_prefix=name)
            for name in ("health", "metrics")
        }
        self._lanes = {
            "waiting": ThreadPoolExecutor(self.settings.staging.waiters, "waiting"),
            "moving": ThreadPoolExecutor(self.settings.proseo.moves, "moving"),
        }
        self._collected = 0
        self._leaving: deque[Connection] = deque()
        super().init_process()

    def accept(self, listener: Any) -> None:
        """Take a connection and wait for its head without a thread."""
        try:
            client, address = listener.accept()
        except OSError:
            return  # gone again, or another process was faster
        self.nr_conns += 1
        paced = PacedSocket(self.settings.limits, client)
        self._await_head(Connection(self.cfg, paced, address, listener.getsockname()))

    def on_client_socket_readable(self, conn: Connection, client: socket.socket) -> None:
        """A kept connection has something to say: most often a whole head."""
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        try:
            data = client.recv(_READ_BYTES)
        except BlockingIOError:
            self._await_head(conn)
            return
        except OSError:
            data = b""
        if data:
            self._await_head(conn, data)
        else:
            self._drop(conn)

    # -- the head ----------------------------------------------------------------------------
    def _await_head(self, conn: Connection, head: bytes = b"") -> None:
        conn.head, conn.wanted = head, 0
        if conn.is_complete:
            self._admit(conn)
            return
        self._collected += len(head)
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + self.settings.server.header_seconds
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._read_head, conn))

    def _read_head(self, conn: Connection, client: socket.socket) -> None:
        try:
            data = client.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        conn.head += data
        self._collected += len(data)
        complete = conn.is_complete
        too_long = not conn.wanted and len(conn.head) > _MAX_HEAD_BYTES
        crowded = self._collected > _MAX_COLLECTED_BYTES
        if data and not complete and not too_long and not crowded:
            return
        self.poller.unregister(client)
        self.pending_conns.remove(conn)
        self._collected -= len(conn.head)
        if complete:
            self._admit(conn)
        else:
            self._drop(conn, b"" if not data else _TOO_LONG if too_long else _CROWDED)

    def murder_pending(self) -> None:
        """Answer 408 to the heads that do not come to their end, close what said nothing."""
        now = time.monotonic()
        while self.pending_conns and self.pending_conns[0].timeout <= now:
            conn = self.pending_conns.popleft()
            self.poller.unregister(conn.sock)
            self._collected -= len(conn.head)
            self._drop(conn, _TIMED_OUT if conn.head else b"")
        while self._leaving and self._leaving[0].timeout <= now:
            self._left(self._leaving[0])

    def note_refused(self, kind: Kind) -> None:
        """Count a request that was told to come again."""
        # Imported here: the parent process must not have it before the directory is there.
        from admin_api.web import metrics

        metrics.REFUSED.labels(kind.value).inc()
        log.info("request refused before it had a thread", extra={"code": "busy", "kind": kind})

    # -- the thread --------------------------------------------------------------------------
    def _admit(self, conn: Connection) -> None:
        """Give the request a thread, or tell it to come again."""
        lane = self._lane(conn)
        conn.is_quick = lane in self._quick.values()
        if lane is None:
            kind = admission.kind_of(conn.head)
            try:
                conn.hold = self.transfers.take(kind, Need(threads=1))
            except Busy:
                self.note_refused(kind)
                conn.sock.setblocking(False)
                with contextlib.suppress(OSError):  # the client may be gone
                    conn.sock.send(admission.refusal(kind, conn.head))
                self._leave(conn)
                return
        future = (self.tpool if lane is None else lane).submit(self.handle, conn)
        future.add_done_callback(
            lambda done: self.method_queue.defer(self.finish_request, conn, done)
        )

    def _lane(self, conn: Connection) -> ThreadPoolExecutor | None:
        """The threads for what is answered at once, or waits long, if it is of these kinds."""
        if conn.server[1] == self.settings.server.metrics_port:
            return self._quick["metrics"]
        if admission.is_health(conn.head):
            return self._quick["health"]
        name = admission.lane_of(conn.head)
        return None if name is None else self._lanes[name]

    def handle(self, conn: Connection) -> Any:
        """Serve a request whose head has been read; runs in a thread."""
        conn.data_ready = True
        seconds = _QUICK_SECONDS if conn.is_quick else None
        conn.sock.settimeout(seconds or self.settings.limits.transfer_idle_seconds)
        conn.init()
        if not isinstance(conn.parser.unreader, PacedUnreader):
            conn.parser.unreader = PacedUnreader(conn.sock)
        conn.parser.unreader.begin(Pace(self.settings.limits.transfer_min_rate))
        if conn.head:
            conn.parser.unreader.unread(conn.head)
            conn.head = b""
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Connection) -> Any:
        """Serve it with a limit on every wait for the client."""
        seconds = _QUICK_SECONDS if conn.is_quick else None
        conn.sock.settimeout(seconds or self.settings.limits.transfer_idle_seconds)
        return super().handle_request(req, conn)

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:
        """Only a connection whose request was read to its end is kept; no thread reads the rest."""
        return bool(keepalive) and _is_read(conn.parser)

    def finish_request(self, conn: Connection, fs: Any) -> None:
        """Keep the connection, or take leave; what was pipelined behind is the next head."""
        if conn.hold is not None:
            conn.hold.give_back()
            conn.hold = None
        if fs.cancelled() or fs.exception() is not None or not fs.result():
            self._leave(conn)
            return
        rest = conn.parser.unreader.take_buffered()
        if rest:
            self._await_head(conn, rest)
            return
        super().finish_request(conn, fs)

    # -- the end -----------------------------------------------------------------------------
    def _drop(self, conn: Connection, farewell: bytes = b"") -> None:
        if farewell:
            with contextlib.suppress(OSError):  # the client may be gone
                conn.sock.send(farewell)
        self.nr_conns -= 1
        conn.close()

    def _leave(self, conn: Connection) -> None:
        """Say that nothing more will come, and read what is still sent, within bounds.

        A connection closed with bytes unread is reset, and the answer with it.
        """
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            conn.timeout = time.monotonic() + _FAREWELL_SECONDS
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._forget, conn))
        except (OSError, ValueError, KeyError):
            self.nr_conns -= 1
            conn.close()
            return
        self._leaving.append(conn)

    def _forget(self, conn: Connection, client: socket.socket) -> None:
        try:
            data = client.recv(_FAREWELL_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        conn.drained += len(data)
        if not data or conn.drained > _FAREWELL_BYTES:
            self._left(conn)

    def _left(self, conn: Connection) -> None:
        self._leaving.remove(conn)
        with contextlib.suppress(OSError, ValueError, KeyError):
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()


class PacedUnreader(SocketUnreader):  # type: ignore[misc]  # gunicorn has no types
    """What comes in, at a pace: raises ClientStalled for a body that trickles or stops."""

    def begin(self, pace: Pace) -> None:
        """A request begins."""
        self._pace = pace

    def chunk(self, size_hint: int | None = None) -> bytes:
        with self._paced() as received:
            data: bytes = super().chunk(size_hint)
            received(len(data))
        return data

    def read_into(self, view: memoryview) -> int:
        """The next bytes into ``view``: those that were read ahead, then the socket's."""
        ahead = self.take_buffered()
        count = min(len(ahead), len(view))
        if count:
            view[:count] = ahead[:count]
            self.buf.write(ahead[count:])
            return count
        with self._paced() as received:
            count = int(self.sock.recv_into(view))
            received(count)
        return count

    @contextlib.contextmanager
    def _paced(self) -> Iterator[Callable[[int], None]]:
        """Watch one wait for the client; what is yielded is told how many bytes came."""
        begun = time.monotonic()

        def received(count: int) -> None:
            if not self._pace.keeps_up(count, time.monotonic() - begun):
                raise ClientStalled("The body comes too slowly; see limits.transfer_min_rate.")

        try:
            yield received
        except TimeoutError:
            raise ClientStalled(
                f"No byte came for {time.monotonic() - begun:.0f} seconds."
            ) from None


class PacedSocket(socket.socket):
    """What goes out, at a pace: raises TimeoutError where the client takes it too slowly."""

    def __init__(self, limits: LimitSettings, client: socket.socket) -> None:
        """Takes ``client`` over."""
        super().__init__(client.family, client.type, client.proto, client.detach())
        self._limits = limits

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As of a socket, a piece at a time."""
        rest, pace = memoryview(data).cast("B"), Pace(self._limits.transfer_min_rate)
        while rest:
            begun = time.monotonic()
            sent = self.send(rest[:_SENT_AT_ONCE], flags)
            self._require(pace, sent, begun)
            rest = rest[sent:]

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """As of a socket, by the kernel."""
        pace, total = Pace(self._limits.transfer_min_rate), 0
        while count is None or total < count:
            begun = time.monotonic()
            wanted = _SENT_AT_ONCE if count is None else min(_SENT_AT_ONCE, count - total)
            try:
                sent = os.sendfile(self.fileno(), file.fileno(), offset + total, wanted)
            except BlockingIOError:
                timeout = self.gettimeout()
                poller = select.poll()
                poller.register(self.fileno(), select.POLLOUT)
                if not poller.poll(None if timeout is None else timeout * 1000):
                    raise TimeoutError("The client does not take what it is sent.") from None
                sent = 0
            else:
                if sent == 0:
                    break
            total += sent
            self._require(pace, sent, begun)
        return total

    @staticmethod
    def _require(pace: Pace, sent: int, begun: float) -> None:
        if not pace.keeps_up(sent, time.monotonic() - begun):
            raise TimeoutError("The client takes what it is sent too slowly.")


def fill(body: Any, view: memoryview) -> int | None:
    """Fill ``view`` with a request's body; it holds less only where the body ends or breaks off.

    None where that cannot be done without copies: its length is not known, or it is no
    connection's.
    """
    reader = getattr(body, "reader", None)
    if not isinstance(reader, LengthReader) or body.buf.tell():
        return None
    view, count = view[: reader.length], 0
    try:
        while count < len(view) and (more := reader.unreader.read_into(view[count:])):
            count += more
            reader.length -= more
    except BaseException:
        body.failed = True
        raise
    return count


def is_here(body: Any) -> bool:
    """Whether nothing of a request's body is still to come: read, or in memory already.

    An answer given before that must say that the connection ends with it.
    """
    if body.failed:
        return False
    if isinstance(body.reader, LengthReader):
        return bool(body.reader.length <= len(body.reader.unreader.buf.getvalue()))
    return getattr(body.reader, "parser", None) is None


def _is_read(parser: Any) -> bool:
    """Take what is left of the body, if that needs no waiting; whether it is at its end."""
    if not is_here(parser.mesg.body):
        return False
    return bool(parser.finish_body(deadline=time.monotonic() + _QUICK_SECONDS))
