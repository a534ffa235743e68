"""Where products may be ingested from: directories, buckets and web servers, as settings allow.

Nothing else is read (promise I9).  A web source is resolved first, its addresses are checked, and
the connection goes to the address that was checked; redirects are checked like the first address.
Called by ``services/ingest.py``.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat as stat_module
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

import urllib3

from admin_api.errors import (
    InvalidRequest,
    NotFound,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    StorageManagerError,
)
from admin_api.services.pace import Pace
from admin_api.settings import LimitSettings, SourceSettings
from admin_api.storage import confined
from admin_api.storage.base import CHUNK
from admin_api.storage.s3 import S3Storage

_OK = 200
_REDIRECTS = (301, 302, 303, 307, 308)
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Addresses that stand for others, private ones too: NAT64 (RFC 6052, 8215), 6to4, Teredo.
_TRANSLATED: tuple[_Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "192.88.99.0/24")
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that a source has: its path in the product, its size in bytes if known.

    ``read_at(start, stop)`` gives a range (``stop`` exclusive) where the source can be read from
    anywhere and its size is known; None where it can only be read from its beginning.
    """

    path: str
    size: int | None
    open: Callable[[], Iterator[bytes]]
    read_at: Callable[[int, int], Iterator[bytes]] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a source URI names: a file (``is_tree`` false) or a tree of files."""

    name: str
    is_tree: bool
    files: list[SourceFile]


class Sources:
    """The allowed sources."""

    def __init__(self, settings: SourceSettings, limits: LimitSettings) -> None:
        """Raises InvalidRequest for networks that are none."""
        self._settings = settings
        self._limits = limits
        self._origins = {_origin(origin) for origin in settings.origins}
        self._networks: list[_Network] = [
            ipaddress.ip_network(item) for item in settings.private_networks
        ]

    def find(self, uri: str) -> Found:
        """What ``uri`` names.

        Raises SourceDenied outside the allowed places, SourceNotFound, SourceUnavailable, and
        InvalidRequest for a URI that cannot be understood.
        """
        try:
            scheme = urlsplit(uri).scheme
        except ValueError as error:
            raise InvalidRequest(f"The source {uri!r} is not a URI: {error}.") from error
        match scheme:
            case "file":
                return self._find_file(uri)
            case "s3":
                return self._find_object(uri)
            case "http" | "https":
                return self._find_web(uri)
        raise SourceDenied(
            f"The source {uri!r} has the scheme {scheme!r}; file, s3, https and alluxio are known."
        )

    # -- directories -------------------------------------------------------------------------
    def _find_file(self, uri: str) -> Found:
        split = urlsplit(uri)
        path = Path(unquote(split.path))
        if split.netloc not in ("", "localhost") or split.query or split.fragment:
            raise SourceDenied(f"The source {uri!r} is not a plain file URI (file:///path).")
        if not path.is_absolute() or ".." in path.parts or "\0" in split.path + str(path):
            raise SourceDenied(f"The source {uri!r} is not an absolute path without '..'.")
        for root in self._settings.file_roots:
            if path.is_relative_to(root) and path != root:
                return _walk(root, path.relative_to(root).parts, uri)
        raise SourceDenied(f"The source {uri!r} lies beneath none of the allowed roots.")

    # -- buckets -----------------------------------------------------------------------------
    def _find_object(self, uri: str) -> Found:
        split = urlsplit(uri)
        key = unquote(split.path).strip("/")
        for source in self._settings.s3:
            allowed = any(
                not prefix or key == prefix.strip("/") or key.startswith(prefix.strip("/") + "/")
                for prefix in source.prefixes
            )
            if split.netloc == source.backend.bucket and allowed and key:
                return _find_in_bucket(S3Storage(source.backend), key, uri)
        raise SourceDenied(f"The source {uri!r} lies in none of the allowed buckets and prefixes.")

    # -- web servers -------------------------------------------------------------------------
    def _find_web(self, uri: str) -> Found:
        answer = self._request(uri)
        name = unquote(urlsplit(uri).path).rpartition("/")[2]
        length = answer.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() else None
        opened = [answer]

        def read() -> Iterator[bytes]:
            # The first reading uses the answer that told the size.
            return self._read(uri, opened.pop() if opened else self._request(uri))

        return Found(name, False, [SourceFile(name, size, read)])

    def _request(self, uri: str) -> urllib3.BaseHTTPResponse:
        for _ in range(self._settings.redirects + 1):
            host, port, target = self._check_web(uri)
            answer = self._connect(uri, host, port, target)
            if answer.status in _REDIRECTS and "Location" in answer.headers:
                uri = urljoin(uri, answer.headers["Location"])
                answer.close()
                continue
            if answer.status == _OK and "Content-Encoding" not in answer.headers:
                return answer
            answer.close()
            if answer.status in (404, 410):
                raise SourceNotFound(f"The source {uri!r} answered {answer.status}.")
            raise SourceUnavailable(f"The source {uri!r} answered {answer.status}.")
        raise SourceUnavailable(f"The source redirects more than {self._settings.redirects} times.")

    def _check_web(self, uri: str) -> tuple[str, int, str]:
        """Host, port and request target of an allowed web URI."""
        if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in uri):
            raise SourceDenied("The source URI holds spaces or control characters.")
        try:
            split = urlsplit(uri)
            port = split.port or (443 if split.scheme == "https" else 80)
            origin = _origin(uri)
        except ValueError as error:
            raise SourceDenied(f"The source {uri!r} is not a web address: {error}.") from error
        if split.username is not None or split.password is not None or "\\" in uri:
            raise SourceDenied("A source URI may not hold credentials or backslashes.")
        if origin not in self._origins:
            raise SourceDenied(f"The origin {origin!r} is not one of the allowed origins.")
        path = quote(split.path or "/", safe="/%:@!$&'()*+,;=~-._")
        return split.hostname or "", port, path + (f"?{split.query}" if split.query else "")

    def _connect(self, uri: str, host: str, port: int, target: str) -> urllib3.BaseHTTPResponse:
        address = self._resolve(host, port)
        timeout = urllib3.Timeout(connect=10.0, read=self._settings.timeout)
        pool: urllib3.HTTPConnectionPool
        if urlsplit(uri).scheme == "https":
            pool = urllib3.HTTPSConnectionPool(
                address,
                port,
                timeout=timeout,
                cert_reqs="CERT_REQUIRED",
                ca_certs=str(self._settings.ca_file) if self._settings.ca_file else None,
                server_hostname=host,
                assert_hostname=host,
            )
        else:
            pool = urllib3.HTTPConnectionPool(address, port, timeout=timeout)
        name = f"[{host}]" if ":" in host else host
        try:
            return pool.urlopen(
                "GET",
                target,
                headers={"Host": f"{name}:{port}", "Accept-Encoding": "identity"},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise SourceUnavailable(f"The source {uri!r} cannot be reached.") from error

    def _resolve(self, host: str, port: int) -> str:
        """An address of ``host``, every one of them being allowed."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise SourceUnavailable(f"The host {host!r} cannot be resolved.") from error
        addresses = [ipaddress.ip_address(str(item[4][0]).partition("%")[0]) for item in found]
        for address in addresses:
            if not self._allowed(address):
                raise SourceDenied(f"The host {host!r} has an address that is not allowed.")
        return str(addresses[0])

    def _allowed(self, address: _Address) -> bool:
        inner = getattr(address, "ipv4_mapped", None) or address
        if any(inner in network for network in self._networks):
            return True
        if any(inner in network for network in _TRANSLATED):
            return False
        return inner.is_global and not inner.is_multicast

    def _read(self, uri: str, answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        pace = Pace(self._limits.transfer_min_rate)
        try:
            while chunk := answer.read(CHUNK, decode_content=False):
                if not pace.keeps_up(len(chunk)):
                    raise SourceUnavailable(f"The source {uri!r} is too slow.")
                yield chunk
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise SourceUnavailable(f"The source {uri!r} stalled or ended early.") from error
        finally:
            answer.close()


def _walk(root: Path, parts: tuple[str, ...], uri: str) -> Found:
    with _translated(uri), confined.directory(root, parts[:-1]) as parent:
        status = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
    name = parts[-1]
    if stat_module.S_ISREG(status.st_mode):
        return Found(name, False, [_local(root, parts, name, status.st_size)])
    if not stat_module.S_ISDIR(status.st_mode):
        raise SourceDenied(f"The source {uri!r} is a symbolic link or a special file.")
    return Found(name, True, list(_walk_tree(root, parts, (), uri)))


def _walk_tree(
    root: Path, base: tuple[str, ...], inner: tuple[str, ...], uri: str
) -> Iterator[SourceFile]:
    with _translated(uri), confined.directory(root, base + inner) as directory:
        entries = [
            (name, os.stat(name, dir_fd=directory, follow_symlinks=False))
            for name in sorted(os.listdir(directory))
        ]
    for name, status in entries:
        path = (*inner, name)
        if stat_module.S_ISDIR(status.st_mode):
            yield from _walk_tree(root, base, path, uri)
        elif stat_module.S_ISREG(status.st_mode):
            yield _local(root, base + path, "/".join(path), status.st_size)
        else:
            raise SourceDenied(f"{'/'.join(path)!r} is a symbolic link or a special file.")


def _local(root: Path, parts: tuple[str, ...], path: str, size: int) -> SourceFile:
    def read() -> Iterator[bytes]:
        with _translated(path):
            fd = confined.open_file(root, parts)
            # One byte more than was listed shows a file that grows while it is read.
            yield from confined.read_descriptor(fd, 0, size + 1, CHUNK)

    def read_at(start: int, stop: int) -> Iterator[bytes]:
        with _translated(path):
            fd = confined.open_file(root, parts)
            yield from confined.read_descriptor(fd, start, stop, CHUNK)

    return SourceFile(path, size, read, read_at)


def _find_in_bucket(bucket: S3Storage, key: str, uri: str) -> Found:
    name = key.rpartition("/")[2]
    with _bucket_errors(uri):
        with contextlib.suppress(NotFound):
            stat = bucket.stat(key)
            return Found(name, False, [_object(bucket, key, name, stat.size)])
        files = [
            _object(bucket, stat.key, stat.key[len(key) + 1 :], stat.size)
            for stat in bucket.list(key)
        ]
    if not files:
        raise SourceNotFound(f"The source {uri!r} names nothing.")
    return Found(name, True, files)


def _object(bucket: S3Storage, key: str, path: str, size: int) -> SourceFile:
    def read() -> Iterator[bytes]:
        with _bucket_errors(key):
            yield from bucket.open(key)

    def read_at(start: int, stop: int) -> Iterator[bytes]:
        with _bucket_errors(key):
            yield from bucket.open(key, start, stop)

    return SourceFile(path, size, read, read_at)


def _origin(uri: str) -> str:
    split = urlsplit(uri)
    port = split.port or {"https": 443, "http": 80}.get(split.scheme, 0)
    return f"{split.scheme}://{(split.hostname or '').lower()}:{port}"


@contextlib.contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        match error.errno:
            case errno.ENOENT:
                raise SourceNotFound(f"The source {where!r} names nothing.") from error
            case errno.ENOTDIR | errno.ELOOP | errno.EACCES | errno.EPERM | errno.ENAMETOOLONG:
                raise SourceDenied(f"The source {where!r}: {error.strerror}.") from error
        raise SourceUnavailable(f"The source {where!r}: {error.strerror}.") from error


@contextlib.contextmanager
def _bucket_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (SourceNotFound, SourceUnavailable):
        raise
    except NotFound as error:
        raise SourceNotFound(f"The source {where!r} names nothing.") from error
    except StorageManagerError as error:
        raise SourceUnavailable(f"The source {where!r} cannot be read: {error.detail}") from error
