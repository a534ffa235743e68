"""Alluxio as a store: the contract of every store, and what is seen through it at once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from admin_api.settings import AlluxioBackend, AlluxioNode, S3Backend
from admin_api.storage.alluxio import AlluxioStorage
from admin_api.storage.base import Storage, put_bytes
from admin_api.storage.s3 import S3Storage
from admin_api.storage.untold import Untold

# The contract suite, unchanged, over the fixture below.
from tests.contract.test_storage import (  # noqa: F401 - collected here by pytest
    test_a_directory_is_not_an_object,
    test_a_failed_put_leaves_nothing_behind,
    test_a_key_is_written_once,
    test_a_store_says_how_full_it_is_or_that_it_cannot,
    test_an_object_can_be_written_from_one_that_is_being_read,
    test_an_object_of_many_parts_is_read_back,
    test_deleted_objects_are_gone_and_their_keys_free,
    test_every_range_is_exact,
    test_keys_outside_the_grammar_are_refused,
    test_listings_are_complete_in_a_stable_order_and_beneath_the_directory_only,
    test_missing_keys_are_told,
    test_more_than_two_pages_are_listed_in_order,
    test_odd_names_are_kept_exactly,
    test_the_probe_finds_every_promise_kept,
    test_uris_lead_back_to_their_keys,
    test_what_was_put_is_read_back,
)
from tests.support.local_facility import ADDRESSES, NODES, Facility, wait_until
from tests.support.servers import free_port


@pytest.fixture(scope="module")
def storage(facility: Facility, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """The facility's own store, with the proxies reached through ssh: the firewall stays shut."""
    directory = tmp_path_factory.mktemp("alluxio")
    ports = {(node, port): free_port() for node in NODES for port in (39999, 8404)}
    forwards = [
        f"-L127.0.0.1:{near}:{ADDRESSES[node]}:{port}" for (node, port), near in ports.items()
    ]
    config = ["-F", str(facility.directory / "ssh_config"), "-N", "-oExitOnForwardFailure=yes"]
    tunnel = subprocess.Popen(["ssh", *config, *forwards, "control"])
    credentials = directory / "credentials"
    credentials.write_text(
        "[default]\n"
        f"aws_access_key_id = {(facility.directory / 's3_access_key').read_text()}\n"
        f"aws_secret_access_key = {(facility.directory / 's3_secret_key').read_text()}\n"
    )
    key_file = directory / "links.key"
    key_file.write_text(facility.ssh("control", "cat /etc/storage-manager/secrets/links.key"))
    understore = S3Backend(
        bucket="facility",
        prefix="warehouse",
        endpoint=f"http://{ADDRESSES['s3']}:8333",
        credentials_file=credentials,
    )
    settings = AlluxioBackend(
        understore=understore,
        masters=["control:19998"],
        master_urls=[f"http://{ADDRESSES['control']}:19999"],
        nodes=[
            AlluxioNode(
                name=node,
                proxy=f"http://127.0.0.1:{ports[node, 39999]}",
                balancer=facility.url(node),
                health=f"http://127.0.0.1:{ports[node, 8404]}/lb-health",
            )
            for node in NODES
        ],
        link_key_file=key_file,
    )
    store = AlluxioStorage(settings, S3Storage(understore), Untold(directory / "untold"))
    wait_until(
        lambda: store.cluster.reaches(f"http://127.0.0.1:{ports['node1', 39999]}"), 10, "ssh"
    )
    sweep(store)
    try:
        yield store
    finally:
        sweep(store)
        tunnel.terminate()
        tunnel.wait()


def sweep(store: Storage) -> None:
    """Take away the suite's keys: everything that is no product, record or upload."""
    kept = {
        "incoming",
        ".products",
        ".alluxio_s3_api_metadata",
        "unsorted",
        "S1",
        "S2",
        "S3",
        "S5P",
    }
    store.delete_many([item.key for item in store.list() if item.key.split("/")[0] not in kept])


def fetched(facility: Facility, storage: Storage, key: str) -> tuple[int, bytes]:
    link = storage.link(key, 60, "x")
    assert link is not None
    answer = facility.request("GET", link)
    return answer.status, answer.data if answer.status == 200 else b""


def test_a_key_that_was_asked_for_in_vain_is_seen_as_soon_as_it_is_written(
    facility: Facility, storage: Storage
) -> None:
    """Alluxio remembers that an object was not there."""
    key = f"a/vain/{time.time_ns()}"
    assert fetched(facility, storage, key)[0] == 404
    put_bytes(storage, key, b"now it is there")
    assert fetched(facility, storage, key) == (200, b"now it is there")
    storage.delete(key)
    assert fetched(facility, storage, key)[0] == 404


def test_a_key_that_is_written_anew_is_never_seen_as_before(
    facility: Facility, storage: Storage
) -> None:
    """Never done by the service, whose keys are written once; yet the store stands it."""
    key = f"a/anew/{time.time_ns()}"
    for size in (10, 40, 5, 3_000_000, 1):
        data = os.urandom(size)
        put_bytes(storage, key, data)
        for _ in range(2):
            assert fetched(facility, storage, key) == (200, data)
        storage.delete(key)
        assert fetched(facility, storage, key)[0] == 404


def test_a_removed_object_is_neither_served_from_the_cache_nor_waited_for(
    facility: Facility, storage: Storage
) -> None:
    for cached in (True, False):
        key = f"a/removed/{time.time_ns()}"
        put_bytes(storage, key, b"x" * 100_000)
        if cached:
            assert fetched(facility, storage, key)[0] == 200
        storage.delete(key)
        begun = time.monotonic()
        assert fetched(facility, storage, key)[0] == 404
        assert time.monotonic() - begun < 10, "a reader was kept waiting"


def test_nothing_is_lost_when_the_cluster_cannot_be_told_and_it_is_told_later(
    facility: Facility, storage: AlluxioStorage, tmp_path: Path
) -> None:
    nowhere = "http://127.0.0.1:9"
    node = AlluxioNode(name="n", proxy=nowhere, balancer=nowhere, health=nowhere)
    deaf = storage._settings.model_copy(update={"nodes": [node]})
    untold = Untold(tmp_path / "untold")
    store = AlluxioStorage(deaf, storage.understore, untold)
    key = f"a/deaf/{time.time_ns()}"
    put_bytes(store, key, b"kept")
    assert b"".join(store.open(key)) == b"kept"
    assert store.link(key, 60, "x") is None
    hearing = AlluxioStorage(storage._settings, storage.understore, untold)
    assert hearing.tell_again() == 1
    assert fetched(facility, storage, key) == (200, b"kept")
    store.delete(key)
    assert fetched(facility, storage, key)[0] == 200, "cached: nobody has told the cluster"
    assert store.tell_again() == 0
    assert hearing.tell_again() == 1
    assert fetched(facility, storage, key)[0] == 404
    assert list(untold) == []


# -- replacing, removing and ingesting again while others read -------------------------------------
def test_readers_never_see_a_stale_truncated_or_mixed_file(facility: Facility) -> None:
    """Every answer is one whole generation, and one that was current when the link was given."""
    name = f"churn-{time.time_ns()}.bin"
    token = facility.token("read")
    generations: dict[str, float] = {}  # digest -> when it stopped being current
    wrong: list[str] = []
    counts = {"read": 0, "gone": 0}
    stop = threading.Event()
    product: dict[str, Any] = {}

    def read(number: int) -> None:
        turn = number
        while not stop.is_set():
            turn += 1
            begun = time.monotonic()
            identity = product.get("id")
            if identity is None:
                time.sleep(0.05)
                continue
            node = NODES[turn % 3]
            path = f"/v1/products/{identity}/files/{name}"
            answer = facility.request("GET", path, node=node, token=token)
            if answer.status in (404, 410):
                counts["gone"] += 1
                continue
            if answer.status != 307:
                wrong.append(f"link {answer.status} {answer.data[:200]!r}")
                continue
            answer = facility.request("GET", answer.headers["Location"])
            if answer.status in (404, 503):  # replaced or removed between link and read
                counts["gone"] += 1
                continue
            if answer.status != 200:
                wrong.append(f"read {answer.status} {answer.data[:200]!r}")
                continue
            digest = hashlib.sha256(answer.data).hexdigest()
            counts["read"] += 1
            if digest not in generations:
                wrong.append(f"bytes of no generation: {len(answer.data)}")
            elif generations[digest] < begun:
                wrong.append(f"a generation {begun - generations[digest]:.2f} s after its end")

    readers = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for reader in readers:
        reader.start()
    try:
        current = ""
        for turn in range(25):
            data = os.urandom((1 << 20) * (1 + turn % 5) + turn)
            digest = hashlib.sha256(data).hexdigest()
            generations[digest] = float("inf")
            product.update(facility.upload(name, data, "?duplicates=replace"))
            if current:
                generations[current] = time.monotonic()
            current = digest
            time.sleep(0.3)
            if turn % 5 == 4:
                facility.remove(product)
                generations[current], current = time.monotonic(), ""
                time.sleep(0.2)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not wrong, wrong[:5]
    assert counts["read"] > 50, counts
    print(f"\n25 generations, {counts['read']} whole reads, {counts['gone']} told that it was gone")


# -- uploads through the proxies -------------------------------------------------------------------
@pytest.fixture(scope="module")
def sender(facility: Facility) -> str:
    return facility.token("read", "ingest", subject="sender")


def register(facility: Facility, token: str, path: str, data: bytes, **more: Any) -> Any:
    body = {
        "source": f"alluxio:///incoming/sender/{path}",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        **more,
    }
    body = {key: value for key, value in body.items() if value is not None}
    return facility.request("POST", "/v1/products", token=token, body=body)


@pytest.mark.parametrize("node", NODES)
def test_what_was_put_through_a_proxy_becomes_a_product_when_it_is_registered(
    facility: Facility, sender: str, node: str
) -> None:
    data, name = os.urandom(5_000_000), f"put-{time.time_ns()}.bin"
    path = f"/api/v1/s3/incoming/sender/{name}"
    assert facility.request("PUT", path, node=node, token=sender, body=data).status == 200
    answer = register(facility, sender, name, data)
    assert answer.status == 201, answer.data
    product = json.loads(answer.data)
    assert facility.read(facility.link(product)) == data
    assert facility.request("GET", path, node=node, token=sender).status == 404
    facility.remove(product)


def test_a_multipart_upload_through_the_balancers_becomes_a_product(
    facility: Facility, sender: str
) -> None:
    parts = [os.urandom(6 << 20), os.urandom(6 << 20), os.urandom(1000)]
    name = f"parts-{time.time_ns()}.bin"
    path = f"/api/v1/s3/incoming/sender/{name}"
    answer = facility.request("POST", f"{path}?uploads", token=sender)
    assert answer.status == 200, answer.data
    upload = answer.data.decode().split("<UploadId>")[1].split("<")[0]
    listed = ""
    for number, part in enumerate(parts, start=1):
        answer = facility.request(
            "PUT",
            f"{path}?partNumber={number}&uploadId={upload}",
            node=NODES[number % 3],
            token=sender,
            body=part,
        )
        assert answer.status == 200, answer.data
        etag = answer.headers["ETag"].strip('"')
        listed += f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
    answer = facility.request(
        "POST",
        f"{path}?uploadId={upload}",
        token=sender,
        body=f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode(),
        headers={"Content-Type": "application/xml"},
    )
    assert answer.status == 200, answer.data
    data = b"".join(parts)
    answer = register(facility, sender, name, data)
    assert answer.status == 201, answer.data
    product = json.loads(answer.data)
    assert facility.read(facility.link(product)) == data
    facility.remove(product)


def test_a_stream_of_the_rest_interface_becomes_a_product_and_is_its_senders_alone(
    facility: Facility, sender: str
) -> None:
    name, data = f"stream-{time.time_ns()}.bin", os.urandom(200_000)
    target = f"/api/v1/paths//incoming/sender/{name}/create-file"
    answer = facility.request(
        "POST", target, token=sender, body={"recursive": True, "writeType": "CACHE_THROUGH"}
    )
    assert answer.status == 200, answer.data
    stream = int(answer.data)
    cookies = "; ".join(item.split(";")[0] for item in answer.headers.getlist("Set-Cookie"))
    assert "SM_PROXY=" in cookies and "SM_STREAM=" in cookies

    def call(verb: str, token: str, cookie: str, body: bytes = b"", node: str = "node2"):
        return facility.request(
            "POST",
            f"/api/v1/streams/{stream}/{verb}",
            node=node,
            token=token,
            body=body,
            headers={"Cookie": cookie}
            | ({"Content-Type": "application/octet-stream"} if body else {}),
        )

    other = facility.token("read", "ingest", subject="other")
    proxy_only = cookies.split(";")[0]
    assert call("write", sender, "").status == 409
    assert call("write", sender, proxy_only).status == 409
    assert call("write", other, cookies, b"intruder").status == 409
    assert call("write", sender, cookies.replace("node", "nodf"), b"x").status == 409
    for node in NODES:  # whichever balancer it goes through, it reaches the proxy of the stream
        assert call("write", sender, cookies, data[:100], node).status == 200
    assert call("write", sender, cookies, data).status == 200
    answer = call("close", sender, cookies)
    assert answer.status == 200, answer.data
    whole = data[:100] * 3 + data
    answer = register(facility, sender, name, whole)
    assert answer.status == 201, answer.data
    product = json.loads(answer.data)
    assert facility.read(facility.link(product)) == whole
    facility.remove(product)


def test_an_upload_that_broke_off_never_becomes_a_product(facility: Facility, sender: str) -> None:
    """The proxies take it for whole, and put it over a good one."""
    import socket
    import ssl

    data, name = os.urandom(2_000_000), f"torn-{time.time_ns()}.bin"
    path = f"/api/v1/s3/incoming/sender/{name}"
    context = ssl.create_default_context(cafile=str(facility.ca))
    address = ADDRESSES["node1"]
    plain = socket.create_connection((address, 8443), timeout=10)
    connection = context.wrap_socket(plain, server_hostname=address)
    head = (
        f"PUT {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {sender}\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + data[:700_000])
    time.sleep(1)
    connection.close()
    time.sleep(3)
    answer = register(facility, sender, name, data)
    assert answer.status in (404, 422), (answer.status, answer.data)
    answer = register(facility, sender, name, data, size=None, sha256=None)
    assert answer.status == 400, (answer.status, answer.data)
    assert b"must be stated" in answer.data
    found = facility.json("GET", f"/v1/products?name={name}")["products"]
    assert found == []
    # Sent again, it is whole.
    assert facility.request("PUT", path, token=sender, body=data).status == 200
    product = json.loads(register(facility, sender, name, data).data)
    assert facility.read(facility.link(product)) == data
    facility.remove(product)


def takes_uploads(facility: Facility, node: str) -> bool:
    """Whether a node's balancer sends uploads to every node."""
    stats = facility.ssh(node, "echo 'show stat' | socat - UNIX-CONNECT:/run/haproxy/admin.sock")
    rows = [line.split(",") for line in stats.splitlines() if line.startswith("proxies_write,")]
    return {row[1]: row[17] for row in rows if row[1] in NODES} == dict.fromkeys(NODES, "UP")


def test_first_uploads_that_come_side_by_side_after_a_restart_all_arrive(
    facility: Facility, sender: str
) -> None:
    """With Alluxio's default way of uploading, all of them fail, and every later one as well."""
    for node in NODES:
        facility.ssh(node, "systemctl restart alluxio-worker alluxio-proxy")
    facility.wait_ready()
    # Until a balancer has seen proxy and worker of a node twice, an upload is told to come again.
    wait_until(lambda: all(takes_uploads(facility, node) for node in NODES), 60, "all for uploads")
    data = [os.urandom(8 << 20) for _ in range(16)]
    stamp = time.time_ns()

    def put(number: int) -> int:
        path = f"/api/v1/s3/incoming/sender/cold-{stamp}-{number}.bin"
        return facility.request(
            "PUT", path, node=NODES[number % 3], token=sender, body=data[number]
        ).status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(put, range(16))) == {200}
    for number in (0, 7, 15):
        answer = register(facility, sender, f"cold-{stamp}-{number}.bin", data[number])
        assert answer.status == 201, answer.data
        facility.remove(json.loads(answer.data))


def test_nobody_registers_what_another_subject_has_sent(facility: Facility, sender: str) -> None:
    data, name = b"mine", f"mine-{time.time_ns()}.bin"
    path = f"/api/v1/s3/incoming/sender/{name}"
    assert facility.request("PUT", path, token=sender, body=data).status == 200
    other = facility.token("read", "ingest", subject="other")
    answer = register(facility, other, name, data)
    assert answer.status == 403, answer.data
    for source in (
        "alluxio:///incoming/other/../sender/" + name,
        "alluxio:///unsorted/" + name,
        "alluxio:///.products/" + name,
        "alluxio://elsewhere:19998/incoming/other/" + name,
    ):
        body = {"source": source, "size": 4, "sha256": hashlib.sha256(data).hexdigest()}
        answer = facility.request("POST", "/v1/products", token=other, body=body)
        assert answer.status in (400, 403, 404, 422), (source, answer.status, answer.data)
    assert facility.request("DELETE", path, token=sender).status in (200, 204)


# -- the cache -------------------------------------------------------------------------------------
def test_a_product_can_be_warmed_pinned_and_freed(facility: Facility) -> None:
    data = os.urandom(40 << 20)
    product = facility.upload(f"cache-{time.time_ns()}.bin", data)
    path = f"/v1/products/{product['id']}/cache"
    assert facility.json("GET", path)["cached"] == 0
    answer = facility.json("POST", path, {"action": "warm"})
    wait_until(lambda: facility.json("GET", path)["cached"] == 100, 20, "the product to be cached")
    answer = facility.json("GET", path)
    named = facility.link(product).split("/dl/")[1].split("/")[0]
    assert {place["node"] for place in answer["files"][0]["places"]} == {named}
    assert {place["tier"] for place in answer["files"][0]["places"]} <= {"MEM", "SSD"}
    assert facility.json("POST", path, {"action": "pin"})["files"][0]["pinned"] is True
    assert facility.json("POST", path, {"action": "unpin"})["files"][0]["pinned"] is False
    facility.json("POST", path, {"action": "free"})
    wait_until(lambda: facility.json("GET", path)["cached"] == 0, 30, "the cache to be freed")
    assert facility.read(facility.link(product)) == data
    facility.remove(product)


def test_nodes_and_storage_tell_of_every_node_and_tier(facility: Facility) -> None:
    nodes = {node["name"]: node for node in facility.json("GET", "/v1/nodes")["nodes"]}
    assert set(nodes) >= set(NODES)
    # The second has a second volume, with a quota of its own.
    ssd = {name: (3 if name == "node2" else 2) << 30 for name in nodes}
    for name, node in nodes.items():
        assert (node["worker"], node["proxy"], node["balancer"]) == ("active", "up", "up")
        sizes = {tier["name"]: tier["total"] for tier in node["tiers"]}
        assert sizes == {"MEM": 256 << 20, "SSD": ssd[name]}
    storage = facility.json("GET", "/v1/storage")
    assert storage["profile"] == "alluxio"
    assert storage["mounts"][0]["uri"].startswith("alluxio://control:19998/")
    totals = {tier["name"]: tier["total"] for tier in storage["tiers"]}
    assert totals == {"MEM": len(nodes) * (256 << 20), "SSD": sum(ssd.values())}


def test_a_real_tree_goes_in_and_every_file_comes_out_by_link(
    facility: Facility, tmp_path: Path
) -> None:
    from tests.generator import make_s1

    tree = make_s1(tmp_path, 77, size=3 << 20)
    name = tree.name
    session = facility.json("POST", "/v1/uploads", {"name": name, "verification": "manifest"})
    files = {str(file.relative_to(tree)): file for file in tree.rglob("*") if file.is_file()}
    for path, file in files.items():
        facility.json("PUT", f"/v1/uploads/{session['id']}/{quote(path)}", file.read_bytes())
    product = facility.json("POST", f"/v1/uploads/{session['id']}/commit")
    assert product["mission"] == "S1"
    assert product["files"][0]["uri"].startswith("alluxio://")
    for path, file in files.items():
        assert facility.read(facility.link(product, path)) == file.read_bytes()
    facility.remove(product)
