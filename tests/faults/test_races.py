"""Races: submitters of the same product, and readers, removers and ingesters at once (F17, F18)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3

from tests.support.servers import Service, wait_until

SUBMITTERS = 64


def put(service: Service, name: str, data: bytes, policy: str) -> tuple[int, dict]:
    for _ in range(200):
        answer = service.request("PUT", f"/v1/uploads/{name}?duplicates={policy}", data)
        body = json.loads(answer.data)
        if body.get("code") not in ("busy", "in_progress"):
            return answer.status, body
        time.sleep(random.random() * 0.3)
    raise AssertionError("never accepted")


def fetch(service: Service, href: str) -> tuple[int, bytes]:
    answer = service.request("GET", href)
    if answer.status == 307:
        answer = service.pool.request("GET", answer.headers["Location"])
    return answer.status, answer.data


@pytest.mark.parametrize("policy", ["skip", "error", "replace"])
def test_of_many_submitters_of_one_product_the_policy_decides(service: Service, policy) -> None:
    name = f"raced-{policy}"
    bodies = [bytes([number]) * 50_000 for number in range(SUBMITTERS)]
    service.token()  # made once, before many ask for it
    with ThreadPoolExecutor(SUBMITTERS) as pool:
        answers = list(pool.map(lambda data: put(service, name, data, policy), bodies))
    created = [body for status, body in answers if status == 201]
    refused = [body for status, body in answers if status != 201]
    if policy == "replace":
        assert len(created) == SUBMITTERS
        assert sorted(body["generation"] for body in created) == sorted(
            {body["generation"] for body in created}
        )
        assert len({body["id"] for body in created}) == 1
    else:
        assert len(created) == 1
        assert {body["code"] for body in refused} == {"product_exists"}
    product = service.json("GET", f"/v1/products?name={name}")["products"]
    assert len(product) == 1
    shown = service.json("GET", f"/v1/products/{product[0]['id']}")
    status, data = fetch(service, shown["files"][0]["href"])
    assert status == 200
    assert data in bodies
    assert hashlib.sha256(data).hexdigest() == shown["files"][0]["sha256"]
    assert "0 findings" in service.cli("reconcile", check=False).stdout


def test_identical_submitters_get_one_product(service: Service) -> None:
    data = os.urandom(100_000)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: put(service, "identical", data, "skip"), range(16)))
    assert sorted({status for status, _ in answers}) in ([200, 201], [201])
    assert len({body["id"] for _, body in answers}) == 1
    assert sum(status == 201 for status, _ in answers) == 1


def test_readers_see_whole_products_or_none_while_others_remove_and_ingest(service) -> None:
    """Full bytes, or 404/409/410; a broken transfer is allowed, a wrong or mixed one is not."""
    stop = threading.Event()
    wrong: list[str] = []
    seen = {"whole": 0, "gone": 0, "broken": 0, "removed": 0, "ingested": 0}
    bodies = [bytes([number]) * 400_000 for number in range(8)]
    digests = {hashlib.sha256(data).hexdigest(): data for data in bodies}
    service.token()

    def ingest() -> None:
        while not stop.is_set():
            answer = service.request(
                "PUT", "/v1/uploads/contended?duplicates=replace", random.choice(bodies)
            )
            if answer.status in (200, 201):
                seen["ingested"] += 1
            elif answer.status not in (409, 503):
                wrong.append(f"ingest {answer.status} {answer.data[:200]!r}")

    def remove() -> None:
        while not stop.wait(0.05):
            listed = service.json("GET", "/v1/products?name=contended")["products"]
            for product in listed:
                answer = service.request("DELETE", f"/v1/products/{product['id']}")
                seen["removed"] += answer.status == 200
                if answer.status not in (200, 404, 409):
                    wrong.append(f"remove {answer.status} {answer.data[:200]!r}")

    def read() -> None:
        while not stop.is_set():
            listed = service.json("GET", "/v1/products?name=contended")["products"]
            if not listed:
                continue
            href = f"/v1/products/{listed[0]['id']}/files/contended?redirect=false"
            try:
                answer = service.request("GET", href)
            except (urllib3.exceptions.HTTPError, OSError):
                seen["broken"] += 1
                continue
            if answer.status == 200:
                digest = hashlib.sha256(answer.data).hexdigest()
                seen["whole"] += 1
                if digest not in digests or answer.headers["ETag"] != f'"{digest}"':
                    wrong.append(f"mixed bytes: {len(answer.data)}")
            elif answer.status in (404, 409, 410):
                seen["gone"] += 1
            elif answer.status != 503:
                wrong.append(f"read {answer.status} {answer.data[:300]!r}")

    threads = [threading.Thread(target=work) for work in [ingest] * 3 + [remove] + [read] * 4]
    for thread in threads:
        thread.start()
    time.sleep(8)
    enough = {"whole": 20, "removed": 3, "ingested": 10}
    try:
        wait_until(
            lambda: wrong or all(seen[kind] > count for kind, count in enough.items()),
            240,
            f"more than {enough}",
        )
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    print(seen)
    assert "0 findings" in service.cli("reconcile", check=False).stdout
    assert service.json("GET", "/v1/events/chain")["intact"]
