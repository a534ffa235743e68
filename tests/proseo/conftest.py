"""prosEO's facade on a running service: its own callers, its shared directories, a strict parser."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import urllib3

from admin_api.services.access import Scope
from admin_api.services.callers import line_of
from tests.support.servers import Service, Weed, service_in

SECRET = "demo-shared-secret"
BASE = "/proseo/storage-mgr/v1"
FACILITY_USER = ("facility-sm", "facility-password")
WRAPPER = ("UTM-wrapper", "wrapper-password")
GUI = ("UTM-gui", "gui-password-1")

PRODUCT_FS = {
    "productId",
    "sourceStorageType",
    "sourceFilePaths",
    "targetStorageId",
    "targetStorageType",
    "registeredFilePath",
    "registered",
    "registeredFilesCount",
    "registeredFilesList",
    "deleted",
    "message",
}
FILE_INFO = {"storageType", "filePath", "fileName", "fileSize"}
JOB_ORDER = {"jobOrderStringBase64", "uploaded", "fsType", "pathInfo", "message"}


def basic(user: tuple[str, str]) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(":".join(user).encode()).decode()}


def token(
    sub: str | None,
    exp: Any = 4102444800,
    secret: str = SECRET,
    header: dict[str, Any] | None = None,
    **more: Any,
) -> str:
    """A download token as the Ingestor makes it, written out here by hand."""

    def part(value: dict[str, Any]) -> str:
        text = json.dumps(value, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    claims = {name: value for name, value in (("sub", sub), ("exp", exp)) if value is not None}
    signed = f"{part(header or {'typ': 'JWT', 'alg': 'HS256'})}.{part({**claims, **more})}"
    key = (secret + " " * 16).encode()[:32].ljust(32, b"\0")
    mac = hmac.digest(key, signed.encode(), hashlib.sha256)
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


@dataclass
class Facade:
    """The facade of a running service, and what its callers share with it."""

    service: Service
    kind: str
    inbox: Path
    cache: Path
    bucket: str | None
    weed: Weed | None

    @property
    def root(self) -> str:
        return f"s3://{self.bucket}" if self.bucket else str(self.service.directory / "store")

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        user: tuple[str, str] | None = FACILITY_USER,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> urllib3.BaseHTTPResponse:
        sent = {**(basic(user) if user else {}), **(headers or {})}
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        url = path if path.startswith("/") else f"{BASE}/{path}"
        return self.service.pool.request(
            method, self.service.url + url, body=body, headers=sent, redirect=False, **options
        )

    def strict(self, members: set[str], answer: urllib3.BaseHTTPResponse, status: int) -> Any:
        """The body, by a parser that takes no member that it does not know."""
        assert answer.status == status, (answer.status, answer.headers, answer.data[:500])

        def known(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            names = [name for name, _ in pairs]
            assert set(names) == members, names
            assert len(names) == len(members), names
            return dict(pairs)

        return json.loads(answer.data, object_pairs_hook=known)

    def file(self, name: str, content: bytes) -> Path:
        path = self.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def ingest(self, product_id: str, *sources: Path | str, status: int = 201) -> Any:
        """As the Ingestor does (3.1)."""
        body = {
            "productId": product_id,
            "sourceStorageType": "POSIX",
            "targetStorageType": self.kind,
            "sourceFilePaths": [str(source) for source in sources],
        }
        return self.strict(PRODUCT_FS, self.call("POST", "products", body), status)

    def push(self, product_id: int, source: Path, size: int | None = None) -> Any:
        """As BaseWrapper does with outputs (3.5)."""
        answer = self.push_answer(product_id, source, size)
        return self.strict(FILE_INFO, answer, 201)

    def push_answer(self, product_id: int, source: Path | str, size: int | None = None) -> Any:
        known = Path(source).stat().st_size if size is None else size
        return self.call(
            "PUT",
            f"productfiles?pathInfo={quote(str(source), safe='')}&productId={product_id}"
            f"&fileSize={known}",
            b"",
            WRAPPER,
            {"Content-Type": "application/json", "Accept": "application/json; charset=UTF-8"},
        )

    def fetch(self, path: str) -> Any:
        """As BaseWrapper does with inputs (3.4)."""
        return self.strict(FILE_INFO, self.fetch_answer(path), 200)

    def fetch_answer(self, path: str) -> Any:
        return self.call(
            "GET",
            f"productfiles?pathInfo={quote(path, safe='')}",
            None,
            WRAPPER,
            {"Accept": "application/json; charset=UTF-8"},
        )

    def delete(self, path: str) -> Any:
        """As the Ingestor does: the path is not escaped but for blanks (3.2)."""
        answer = self.call("DELETE", f"products?pathInfo={quote(path, safe=':/+')}")
        return self.strict(PRODUCT_FS, answer, 200)

    def download(self, path: str, query: str = "", method: str = "GET", **options: Any) -> Any:
        sub = path.rpartition("/")[2]
        url = f"products/download?pathInfo={quote(path, safe='')}&token={token(sub)}{query}"
        return self.call(method, url, None, None, **options)


def facade_in(
    directory: Path, request: pytest.FixtureRequest, kind: str, **sections: Any
) -> Facade:
    """A facade that is not started yet; with S3 comes PostgreSQL."""
    directory.mkdir(parents=True, exist_ok=True)
    weed = request.getfixturevalue("s3_server") if kind == "S3" else None
    backend = weed.backend() if weed else {"type": "posix", "root": directory / "store"}
    callers, secret, cache = directory / "callers", directory / "secret", directory / "cache"
    callers.write_text(
        "\n".join(
            [
                line_of(*FACILITY_USER, [Scope.READ, Scope.INGEST, Scope.REMOVE], None),
                line_of(*WRAPPER, [Scope.READ, Scope.INGEST], None),
                line_of(*GUI, [Scope.READ], None),
            ]
        )
    )
    secret.write_text(SECRET + "\n")
    staging = {
        "directory": cache,
        "in_place": False,
        "keep_seconds": 0,
        **sections.pop("staging", {}),
    }
    proseo = {
        "enabled": True,
        "accept": ["basic", "token"],
        "callers_file": callers,
        "secret_file": secret,
        **sections.pop("proseo", {}),
    }
    sections.setdefault("housekeeping", {"interval_seconds": 0.5, "commit_grace_seconds": 4})
    database = request.getfixturevalue("database") if kind == "S3" else None
    service = service_in(directory, backend, database, staging=staging, proseo=proseo, **sections)
    bucket = str(backend["bucket"]) if weed else None
    return Facade(service, kind, directory / "inbox", cache, bucket, weed)


@pytest.fixture(scope="module", params=["POSIX", "S3"])
def facade(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Facade]:
    """The facade on each kind of default storage."""
    made = facade_in(tmp_path_factory.mktemp("proseo"), request, request.param)
    made.service.start()
    yield made
    made.service.stop()


def wait_for_hour() -> None:
    """Not within the last seconds of an hour, where folders change."""
    left = 3600 - time.time() % 3600
    if left < 30:
        time.sleep(left + 1)
