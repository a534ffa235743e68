"""Sends requests to the services and writes them, with what came back, into the history."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import urllib3

from tests.campaign.history import History, Operation, Outcome, Sighting
from tests.support.servers import Service

_TIMEOUT = urllib3.Timeout(connect=3, read=45)
#: How long a client waits where nobody listens.
_NOBODY_SECONDS = 0.2
#: Errors that promise nothing about whether the request has taken effect.
_OPEN = {408, *range(500, 600)}
#: Answers that may be otherwise a moment later.
_AWAY = (429, 503)


class Client:
    """One worker's way to the services."""

    def __init__(
        self,
        services: Sequence[Service],
        token: str,
        history: History,
        worker: str,
        patience: float = 0.0,
    ) -> None:
        """With ``patience`` (seconds) a request without an answer, or that nobody could serve at
        the moment, is sent again; for requests that change nothing.
        """
        self.services = services
        self.history = history
        self.worker = worker
        self._patience = patience
        self._authorization = f"Bearer {token}"

    def send(
        self,
        operation: Operation,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """Send the request of ``operation``; the JSON (or bytes) of a good answer, else None.

        Sightings in the answer are kept with the operation.
        """
        service = self.services[operation.service]
        sent = {"Authorization": self._authorization, **(headers or {})}
        if isinstance(body, dict):
            body, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
        outcome: Outcome = "unknown"
        try:
            answer = self._patiently(
                lambda: service.pool.request(
                    method, service.url + path, body=body, headers=sent, redirect=False,
                    timeout=_TIMEOUT,
                )
            )  # fmt: skip
            if answer.status == 307:
                link = answer.headers["Location"]
                answer = self._patiently(
                    lambda: service.pool.request(
                        "GET", link, headers=_range(sent), timeout=_TIMEOUT
                    )
                )
                if answer.status >= 400:  # the link's own server speaks here
                    operation.code = "link"
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError):
            self.history.end(operation, "refused")
            time.sleep(_NOBODY_SECONDS)
            return None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            operation.code = type(error).__name__
            self.history.end(operation, "unknown")
            return None
        operation.status = answer.status
        is_json = "json" in answer.headers.get("Content-Type", "")
        content: Any = json.loads(answer.data) if is_json and answer.data else answer.data
        if answer.status < 400:
            outcome = "ok"
            if is_json:
                operation.seen += sightings(content)
                operation.result = content.get("result")
        else:
            outcome = "unknown" if answer.status in _OPEN else "refused"
            if is_json:
                operation.code = content.get("code")
        self.history.end(operation, outcome)
        return content if outcome == "ok" else None

    def _patiently(self, ask: Callable[[], urllib3.BaseHTTPResponse]) -> urllib3.BaseHTTPResponse:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                answer = ask()
                if answer.status not in _AWAY or time.monotonic() >= deadline:
                    return answer
            except (urllib3.exceptions.HTTPError, OSError):
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_NOBODY_SECONDS)

    def drop(
        self, operation: Operation, path: str, body: bytes, keep: float, chunked: bool
    ) -> None:
        """Begin an upload and break the connection after the share ``keep`` of the body.

        With all of it sent nobody knows what came of it; with less it must never be a product.
        """
        port = int(self.services[operation.service].url.rpartition(":")[2])
        part = body[: int(len(body) * keep)]
        framing = f"Content-Length: {len(body)}"
        if chunked:
            framing = "Transfer-Encoding: chunked"
            part = f"{len(body):x}\r\n".encode() + part
        head = f"PUT {path} HTTP/1.1\r\nHost: campaign\r\n{framing}\r\n"
        with contextlib.suppress(OSError):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                if chunked:  # half of them with a reset instead of an end
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.sendall(f"{head}Authorization: {self._authorization}\r\n\r\n".encode())
                connection.sendall(part)
        self.history.end(operation, "unknown" if keep >= 1 and not chunked else "refused")


def sightings(content: dict[str, Any]) -> list[Sighting]:
    """The products of an answer: of a listing, of one product, of none."""
    if "products" in content and isinstance(content["products"], list):
        return [sighting(item) for item in content["products"]]
    return [sighting(content)] if "generation" in content else []


def sighting(item: dict[str, Any]) -> Sighting:
    """A product of an answer."""
    available = item["state"] == "available"
    files = {file["path"]: file["sha256"] for file in item.get("files", ())}
    return Sighting(
        "available" if available else "removed",
        item["name"],
        item["id"],
        item["generation"],
        item["digest"],
        files if available and "files" in item else None,
        item["hold"],
        item["retention"],
        item["removed_cause"],
    )


def _range(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name == "Range"}
