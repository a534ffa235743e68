"""Sources outside the allowed places are never read: hosts, addresses, redirects, paths."""

from __future__ import annotations

import http.server
import socket
import threading
from pathlib import Path

import pytest

from admin_api.errors import InvalidRequest, SourceDenied, SourceNotFound, SourceUnavailable
from admin_api.services.sources import Sources
from admin_api.settings import LimitSettings, SourceSettings

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
