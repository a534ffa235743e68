"""Large files on their way out, so that one that breaks off goes on where it stopped (tus 1.0).

Called by ``sending``.
"""

from __future__ import annotations

import base64
import threading
import time
from urllib.parse import quote

from admin_api.cli.client import Client, Reader
from admin_api.cli.failures import EXIT_NOT_FOUND, Failure
from admin_api.cli.parallel import Stopped

#: From this size on a file is sent so; below it, sending it again costs less than asking.
LARGE_BYTES = 64 << 20
#: As much goes in one request: what a break costs at most.
_PIECE_BYTES = 32 << 20
#: How long the service may take to notice that the connection of an earlier try is dead.
_UNNOTICED_SECONDS = 180.0
_PAUSE_SECONDS = 2.0
_VERSION = {"Tus-Resumable": "1.0.0"}


def send(
    client: Client, session: str, path: str, size: int, data: Reader, stop: threading.Event
) -> None:
    """Send a file of a session, or the rest of it if some has arrived; raises Failure, Stopped."""
    target = f"/v1/tus/{session}/{quote(path)}"
    offset = _arrived(client, target)
    if offset is None:
        name = base64.b64encode(path.encode()).decode()
        announced = {"Upload-Length": str(size), "Upload-Metadata": f"filename {name}"}
        client.request("POST", f"/v1/tus/{session}", headers=_VERSION | announced, transfer=True)
        offset = 0
    further = time.monotonic()
    while offset < size:
        end = min(size, offset + _PIECE_BYTES)
        data.begin_at(offset, end)
        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(end - offset),
            "Upload-Offset": str(offset),
        }
        try:
            client.request(
                "PATCH", target, data=data, headers=_VERSION | headers, transfer=True, stop=stop
            )
        except Failure as failure:
            # What had arrived when the try before broke off is kept.
            arrived = int(failure.problem.get("offset", -1))
            is_held = failure.problem.get("code") == "in_progress"
            if arrived > offset:
                end = arrived
            elif is_held and time.monotonic() < further + _UNNOTICED_SECONDS:
                if stop.wait(_PAUSE_SECONDS):
                    raise Stopped from None
                continue
            else:
                raise
        offset, further = end, time.monotonic()
    data.begin_at(size, size)


def _arrived(client: Client, target: str) -> int | None:
    """How much of a file the service has; None if it was never announced."""
    try:
        answer = client.request("GET", target, headers=_VERSION)
    except Failure as failure:
        if failure.exit_code == EXIT_NOT_FOUND:
            return None
        raise
    answer.read()
    return int(answer.headers["Upload-Offset"])
