"""Sources outside the allowed places are never read: hosts, addresses, redirects, paths."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import traceback
from pathlib import Path

import pytest

from admin_api.errors import (
    InvalidKey,
    InvalidRequest,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    StorageManagerError,
)
from admin_api.services.sources import Sources
from admin_api.settings import LimitSettings, SourceSettings
from admin_api.uris import shown

HOSTS = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "0x7f.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "0177.0.0.1",
    "127.0.0.1.",
    "0",
    "0.0.0.0",
    "localhost",
    "localhost.",
    "LOCALHOST",
    "127.255.255.254",
    "127.0.0.1%23",
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "192.168.255.255",
    "169.254.169.254",
    "169.254.0.1",
    "0xa9fea9fe",
    "2852039166",
    "100.64.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:169.254.169.254]",
    "[fe80::1]",
    "[fc00::1]",
    "[fd00::1]",
    "[ff02::1]",
    "[2001:db8::1]",
    "[64:ff9b:1::1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[2001::1]",
    "[100::1]",
]
URIS = [
    "ftp://data.example.org/x",
    "gopher://data.example.org/x",
    "dict://data.example.org/",
    "data:text/plain,x",
    "javascript:x",
    "ldap://data.example.org/",
    "jar:https://data.example.org!/x",
    "//data.example.org/x",
    "https://data.example.org:444/x",
    "http://data.example.org/x",
    "https://user@data.example.org/x",
    "https://user:password@data.example.org/x",
    "https://data.example.org@evil.example/x",
    "https://evil.example/data.example.org",
    "https://data.example.org.evil.example/x",
    "https://data.example.org\\@evil.example/x",
    "https:/\\evil.example/x",
    "https://evil.example#data.example.org",
    "https://data.example.org%2f@evil.example/x",
    "https://[data.example.org]/x",
]


def sources(**settings) -> Sources:
    return Sources(SourceSettings(**settings), LimitSettings())


@pytest.mark.parametrize("host", HOSTS)
def test_addresses_that_are_not_public_are_refused_even_if_the_origin_is_listed(host: str) -> None:
    uri = f"http://{host}/x"
    try:
        allowed = sources(origins=[uri])
    except ValueError:
        return  # not even an origin
    with pytest.raises((SourceDenied, SourceUnavailable)) as caught:
        allowed.find(uri)
    # Refused, or a name that does not resolve; never connected.
    assert "cannot be reached" not in str(caught.value)


@pytest.mark.parametrize("uri", URIS)
def test_only_listed_origins_and_schemes_are_asked(uri: str) -> None:
    with pytest.raises((SourceDenied, InvalidRequest)):
        sources(origins=["https://data.example.org"]).find(uri)


def test_the_corpus_is_large_enough() -> None:
    assert len(HOSTS) + len(URIS) >= 60


class _Redirecting(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []
    location = ""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/data/file.nc":
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"data")
            return
        self.send_response(302)
        self.send_header("Location", type(self).location)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def origin():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Redirecting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _Redirecting.asked = []
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]:1/",
        "file:///etc/passwd",
        "gopher://x/",
        "//10.0.0.1/",
    ],
)
def test_redirects_are_checked_like_the_first_address(origin: str, location: str) -> None:
    _Redirecting.location = location
    allowed = sources(origins=[origin, "http://169.254.169.254"], private_networks=["127.0.0.0/8"])
    with pytest.raises((SourceDenied, SourceUnavailable)):
        allowed.find(f"{origin}/redirect")
    assert _Redirecting.asked == ["/redirect"]


def test_an_endless_redirect_ends(origin: str) -> None:
    _Redirecting.location = "/again"
    with pytest.raises(SourceUnavailable, match="redirects more than"):
        sources(origins=[origin], private_networks=["127.0.0.0/8"]).find(f"{origin}/again")
    assert len(_Redirecting.asked) == 4


def test_a_name_that_resolves_to_another_address_later_is_not_asked_again(
    origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(origin.rpartition(":")[2])
    answers = iter(["127.0.0.1", "10.0.0.1"])
    resolved: list[str] = []

    def rebinding(host, asked_port, *args, **kwargs):
        if host != "data.test":
            return real(host, asked_port, *args, **kwargs)
        resolved.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    allowed = sources(origins=[f"http://data.test:{port}"], private_networks=["127.0.0.0/8"])
    found = allowed.find(f"http://data.test:{port}/data/file.nc")
    assert b"".join(found.files[0].open()) == b"data"
    assert resolved == ["data.test"]


def test_a_connection_that_is_kept_open_is_not_used_for_an_address_that_is_not_allowed(
    origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(origin.rpartition(":")[2])
    address = "127.0.0.1"

    def moving(host, asked_port, *args, **kwargs):
        if host != "moving.test":
            return real(host, asked_port, *args, **kwargs)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", moving)
    allowed = sources(origins=[f"http://moving.test:{port}"], private_networks=["127.0.0.0/8"])
    found = allowed.find(f"http://moving.test:{port}/data/file.nc")
    assert b"".join(found.files[0].open()) == b"data"
    address = "10.0.0.1"
    with pytest.raises(SourceDenied):
        allowed.find(f"http://moving.test:{port}/data/file.nc")
    with pytest.raises(SourceDenied):
        list(found.files[0].open())


def test_only_files_beneath_the_allowed_roots_are_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "tree/deep").mkdir(parents=True)
    (root / "tree/deep/file").write_bytes(b"x")
    (tmp_path / "outside").write_bytes(b"secret")
    allowed = sources(file_roots=[root])
    assert [file.path for file in allowed.find(f"file://{root}/tree").files] == ["deep/file"]
    for bad in (
        f"file://{tmp_path}/outside",
        f"file://{root}/../outside",
        f"file://{root}/%2e%2e/outside",
        f"file://{root}",
        f"file://host{root}/tree",
        "file:relative",
        f"file://{root}/tree%00",
    ):
        with pytest.raises((SourceDenied, SourceNotFound)):
            allowed.find(bad)


@pytest.mark.parametrize("where", ["file", "dir", "tree/link", "tree/deep"])
def test_symbolic_links_in_sources_are_refused(tmp_path: Path, where: str) -> None:
    root = tmp_path / "root"
    (root / "tree").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"secret")
    target = tmp_path / "outside" / ("secret" if where in ("file", "tree/link") else "")
    (root / where).symlink_to(target)
    asked = "tree" if where.startswith("tree") else ("dir/secret" if where == "dir" else where)
    with pytest.raises(SourceDenied):
        sources(file_roots=[root]).find(f"file://{root}/{asked}")


@pytest.mark.parametrize("kind", ["pipe", "socket", "broken link", "not UTF-8", "directory"])
@pytest.mark.parametrize("inner", [True, False])
def test_what_is_no_file_with_a_proper_name_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, inner: bool
) -> None:
    root = tmp_path / "root"
    (root / "tree").mkdir(parents=True)
    (root / "tree/good.nc").write_bytes(b"x")
    monkeypatch.chdir(root / "tree")
    name, words, error = "odd", "", SourceDenied
    match kind:
        case "pipe":
            os.mkfifo(name)
            words = "named pipe"
        case "socket":
            socket.socket(socket.AF_UNIX).bind(name)
            words = "socket"
        case "broken link":
            os.symlink("nowhere", name)
            words = "symbolic link"
        case "not UTF-8" | "directory":
            raw = b"odd\xff"
            os.mkdir(raw) if kind == "directory" else Path(os.fsdecode(raw)).write_bytes(b"x")
            name, words, error = "odd%FF", "not UTF-8", InvalidKey
    uri = f"file://{root}/tree" if inner else f"file://{root}/tree/{name}"
    with pytest.raises(error, match=words) as caught:
        sources(file_roots=[root]).find(uri)
    assert "odd" in str(caught.value)
    json.dumps([str(caught.value), caught.value.extra], ensure_ascii=False).encode()


def test_a_tree_that_is_too_deep_for_keys_is_refused_before_it_is_walked(tmp_path: Path) -> None:
    deep = tmp_path / "root/tree"
    deep.mkdir(parents=True)
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(600):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with pytest.raises(InvalidKey, match="too deep"):
        sources(file_roots=[tmp_path / "root"]).find(f"file://{deep}")


@pytest.mark.parametrize(
    ("uri", "plain"),
    [
        ("https://h/p/x.nc?X-Amz-Signature=s#f", "https://h/p/x.nc"),
        ("https://h/p/x.nc#token=s", "https://h/p/x.nc"),
        ("https://user:s@h:1/p@q", "https://h:1/p@q"),
        ("https:/\\user:s@h/p", "https:/\\h/p"),
        ("//user:s@h/p", "//h/p"),
        ("s3://b/p/a%3Fb", "s3://b/p/a%3Fb"),
        ("file:///a/b@c", "file:///a/b@c"),
        ("upload session", "upload session"),
        ("?s", ""),
    ],
)
def test_what_is_shown_of_a_uri_holds_no_credentials_query_or_fragment(uri, plain) -> None:
    assert shown(uri) == plain


@pytest.mark.parametrize("uri", URIS + [f"http://{host}/x" for host in HOSTS])
def test_no_refusal_shows_the_secrets_of_a_uri(uri: str) -> None:
    scheme, slashes, rest = uri.partition("//")
    for secret in (f"{uri}?token=canary", f"{scheme}{slashes}u:canary@{rest}", f"{uri}#canary"):
        with pytest.raises(StorageManagerError) as caught:
            sources(origins=["https://data.example.org"]).find(secret)
        assert "canary" not in "".join(traceback.format_exception(caught.value))
