"""The 69 recorded answers of the service that this one takes the place of, answer by answer.

Every difference is listed with its reason; a difference that is not listed, or one that is listed
and is not there, fails.  They were recorded over a directory.  Over a bucket the same requests are
sent with the bucket's paths, and what the contract says of a bucket is put back into the words of a
directory (``_OF_A_BUCKET``) before it is compared.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.proseo.conftest import FACILITY_USER, Facade, basic, facade_in, token

RECORDS = json.loads((Path(__file__).parent / "recordings.json").read_text())["records"]

_TEXT = "the text of the error is repeated in the body: some clients log that alone"
_WARNED = "errors of the framework have the header, too"
_SLASH = "slashes too many or at the end are taken (section 1)"
_MISSING = "what is missing is 404 (D20)"
_SAFE = "deleting one missing path has emptied the old store (D1); what it lists is still there"

#: name -> (what may differ: status, type, headers, body), reason
DIFFERENCES: dict[str, tuple[str, str]] = {
    "info": ("body", "of a directory no S3 service is told"),
    "info other version": ("body", "of a directory no S3 service is told"),
    "info slash": ("status body", _SLASH),
    "dslash": ("status body", _SLASH),
    "info accept text": ("status type body", "no 406 (K16)"),
    "ingest missing": ("status type body", "a source that is missing is told, not skipped (D24)"),
    "ingest null paths": ("type body", _TEXT),
    "ingest no ctype": ("status body", "a body of any media type is taken (K16)"),
    "list all": (
        "status type body",
        "one listing of the default storage, not prefixed twice (D18)",
    ),
    "list posix": ("body", "819 was not stored (D24), 822 was (its media type is taken)"),
    "list alluxio": ("type body", _TEXT),
    "list slash": ("status body", _SLASH),
    "dl slash": ("status type body", _SLASH),
    "dl out": ("status type body", "416: the file has no such bytes"),
    "dl neg": ("status type body", "a negative end is that of a number without room: to the end"),
    "dl range hdr": ("status body", "ranges by RFC 9110 as well"),
    "dl bad token": ("type body", _TEXT),
    "dl wrong key": ("type body", _TEXT),
    "dl expired": ("type body", _TEXT),
    "dl other sub": ("type body", _TEXT),
    "dl none": ("type body", _TEXT),
    "dl noexp": ("status type body", "a token without an end is refused, and not by a crash"),
    "dl missing": ("status type body", _MISSING),
    "dl noext": ("status type body", "a file without an extension can be had"),
    "pf get": ("body", "equal names of two products are two files in the cache (D4)"),
    "pf again": ("body", "equal names of two products are two files in the cache (D4)"),
    "pf blank": ("type body", _TEXT),
    "pf missing": ("status type body", _MISSING),
    "pf dir": ("status type body", "a directory is no file: 404 (D20)"),
    "pf put wrong size": ("status type body", "the stated size is compared"),
    "pf put missing": ("type body", _TEXT),
    "jo get missing": ("status body", _MISSING),
    "options": ("type headers", "Flask writes the methods in another order"),
    "del missing": ("body", _SAFE),
    "del raw path": ("body", _SAFE),
    "list after del": ("body", _SAFE),
}

#: Over a bucket besides: name -> the same.
MORE_OF_A_BUCKET: dict[str, tuple[str, str]] = {
    "info": ("body", "the bucket is where it is, and there is no directory of a store"),
    "info other version": ("body", "the same"),
}

#: What answers say of a bucket, and what in its place of a directory (contract, 2.2 to 2.8).
_OF_A_BUCKET = (
    (r'"(storageType|sourceStorageType|fsType)":"S3"', r'"\1":"POSIX"'),
    (r'"targetStorageId":""', '"targetStorageId":"<R>/backend"'),
    (r'("registeredFilePath":"[^"]+/)"', r'\1/"'),
    (r'"S3\|', '"POSIX|'),
)


@pytest.fixture(scope="module", params=["POSIX", "S3"])
def recorded(tmp_path_factory, request) -> Facade:
    made = facade_in(tmp_path_factory.mktemp("recorded"), request, request.param)
    made.service.start()
    source = made.inbox
    made.file("a.nc", bytes(range(250)) * 4)
    made.file("b.ZIP", b"z" * 200_000)
    made.file("noext", b"no extension")
    made.file("pl+us a.nc", b"plus")
    made.file("dir/d1.txt", b"one")
    made.file("dir/sub/s1.txt", b"two")
    assert source.is_dir()
    yield made
    made.service.stop()


def _tokens(name: str) -> str:
    subject = {"dl zip": "b.ZIP", "dl noext": "noext", "dl missing": "nope.nc"}.get(name, "a.nc")
    match name:
        case "dl wrong key":
            return token(subject, secret="another secret of theirs")
        case "dl expired":
            return token(subject, exp=1000)
        case "dl other sub":
            return token("b.nc")
        case "dl none":
            return token(subject, header={"alg": "none"})
        case "dl noexp":
            return token(subject, exp=None)
    return token(subject)


def test_every_answer_is_the_recorded_one_but_for_what_is_listed(recorded: Facade) -> None:
    assert len(RECORDS) == 69
    differences = DIFFERENCES | (MORE_OF_A_BUCKET if recorded.bucket else {})
    assert not set(differences) - {record["name"] for record in RECORDS}
    hour: list[str] = []
    orders: list[str] = []
    wrong, unneeded = [], []
    for record in RECORDS:
        ours, answer = _replay(recorded, record, hour, orders)
        if record["name"] == "ingest":
            assert ours["status"] == 201, (ours, answer)
            hour.append(re.search(r"/backend/(\d+/\d+/\d+/\d+)/815/", ours["body"])[1])
        if record["name"] == "jo post":
            orders.append(re.search(r"[0-9a-f-]{36}", ours["body"])[0])
        found = _compare(record, ours)
        allowed = set(differences.get(record["name"], ("", ""))[0].split())
        if found - allowed:
            wrong.append((record["name"], found - allowed, ours, answer))
        if allowed - found:
            unneeded.append((record["name"], allowed - found))
    assert wrong == []
    assert unneeded == []


def _replay(facade: Facade, record: dict, hour: list[str], orders: list[str]) -> tuple[dict, str]:
    cache, now = str(facade.cache), hour[0] if hour else ""

    def here(text: str) -> str:
        text = text.replace("<token>", _tokens(record["name"]))
        for slash in ("/", "%2F"):
            root = facade.root if slash == "/" else quote(facade.root, safe="")
            text = text.replace(slash.join(("<R>", "backend")), root)
            text = text.replace(slash.join(("<R>", "src")), f"{facade.inbox}".replace("/", slash))
            text = text.replace("2026/11/22/21".replace("/", slash), now.replace("/", slash))
        return text.replace("8c2f0ebd-50b8-423c-b4ec-adfa083e94d8", (orders or [""])[0])

    path = here(record["path"])
    if facade.bucket:
        path = path.replace("storageType=POSIX", "storageType=S3")
    body = record["req"]
    if isinstance(body, dict):
        body = json.loads(here(json.dumps(body)))
    elif isinstance(body, str):
        body = here(body).encode()
    headers = {**basic(FACILITY_USER), **record["reqh"]}
    answer = facade.call(record["method"], path, body, None, headers)
    text = answer.data.decode("utf-8", "replace")
    text = text.replace(facade.root, "<R>/backend").replace(f"{facade.inbox}", "<R>/src")
    text = text.replace(cache, "<R>/cache")
    for pattern, plain in _OF_A_BUCKET if facade.bucket else ():
        text = re.sub(pattern, plain, text)
    given = {
        "status": answer.status,
        "type": answer.headers.get("Content-Type", ""),
        "body": text,
        "headers": dict(answer.headers),
    }
    return given, text[:300]


_VOLATILE = (
    (r'"timestamp":"[^"]*"', '"timestamp":""'),
    (r"executed on node [^\"]*", "executed on node"),
    (r"\d{4}/\d{1,2}/\d{1,2}/\d{1,2}", "Y/M/D/H"),
    (r"[0-9a-f]{8}-[0-9a-f-]{27}", "uuid"),
)


def _compare(record: dict, ours: dict) -> set[str]:
    found = set()
    if ours["status"] != record["status"]:
        found.add("status")
    kind = record["headers"].get("Content-Type", "")
    if ours["type"].replace(" ", "").lower() != kind.replace(" ", "").lower():
        # The old service adds the character set that the request names.
        if not ours["type"].startswith(kind.split(";")[0]) or not kind:
            found.add("type")
    for name in ("Content-Disposition", "Range", "Allow"):
        if name in record["headers"] and ours["headers"].get(name) != record["headers"][name]:
            found.add("headers")
    if record["status"] >= 400 and ours["status"] >= 400:
        assert re.fullmatch(
            r"\d{3} proseo-storage-mgr \(.\d+\) .+", ours["headers"].get("Warning", "")
        ), (record["name"], ours["headers"])
        theirs = re.search(r"\((E\d+)\)", record["headers"].get("Warning", "") or record["body"])
        if theirs and ours["status"] == record["status"]:
            assert theirs[1] in ours["headers"]["Warning"], (record["name"], ours["headers"])
    if _is_payload(record):
        size = int(re.match(r"<(\d+) bytes", record["body"])[1])
        if len(ours["body"]) != size:
            found.add("body")
    else:
        left, right = record["body"], ours["body"]
        for pattern, plain in _VOLATILE:
            left, right = re.sub(pattern, plain, left), re.sub(pattern, plain, right)
        if left != right:
            found.add("body")
    return found


def _is_payload(record: dict) -> bool:
    return re.match(r"<\d+ bytes", record["body"]) is not None
