"""Every secret of the facility is rotated while clients read; certificates tell when they end."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import urllib3

from tests.support.local_facility import ADDRESSES, NODES, Facility, ground, reading

SECRETS = "/etc/storage-manager/secrets"
#: Links live 15 min; the run waits so long for those of the old key instead.
LINKS_SECONDS = 30
#: Not the ten seconds after which a balancer closes an idle connection: who sends at that very moment
#: gets no answer, has to send again, and is no victim of a rotation.
HELD_SECONDS = 7


def bucket_takes(facility: Facility, *pairs: tuple[str, str]) -> None:
    """Let the S3 server take these keys and no others, without a restart."""
    program = (
        "import json\n"
        "found = json.load(open('/etc/seaweedfs.json'))\n"
        f"found['identities'][0]['credentials'] = "
        f"[{{'accessKey': a, 'secretKey': s}} for a, s in {list(pairs)!r}]\n"
        "json.dump(found, open('/etc/seaweedfs.json', 'w'))\n"
    )
    facility.ssh("s3", f"python3 - <<'E'\n{program}E\nsystemctl kill --signal=HUP seaweedfs")


@contextmanager
def links_held(facility: Facility, product: dict[str, Any], data: bytes) -> Iterator[dict]:
    """Clients that use a link some seconds after it was given out, at every balancer."""
    counts: dict[str, Any] = {"used": 0, "refused": []}
    stop = threading.Event()

    def hold() -> None:
        while not stop.is_set():
            links = [facility.link(product)] * len(NODES)
            time.sleep(HELD_SECONDS)
            for node, link in zip(NODES, links, strict=True):
                answer = facility.request("GET", facility.through(link, node))
                counts["used"] += 1
                if (answer.status, answer.data) != (200, data):
                    counts["refused"].append((node, answer.status, answer.data[:200]))

    with ThreadPoolExecutor(4) as pool:
        running = []
        for _ in range(4):
            running.append(pool.submit(hold))
            time.sleep(1)
        try:
            yield counts
        finally:
            stop.set()
    for thread in running:
        thread.result()


def serials(facility: Facility) -> list[str]:
    """Of the certificates that the balancers show."""
    return [
        facility.ssh(
            "control",
            f"openssl s_client -connect {ADDRESSES[node]}:8443 </dev/null 2>/dev/null"
            " | openssl x509 -noout -serial",
        )
        for node in NODES
    ]


@pytest.fixture
def origin() -> Iterator[None]:
    """The bucket to oneself."""
    with ground("origin", alone=True):
        yield


@pytest.mark.drill
@pytest.mark.usefixtures("origin")
def test_every_secret_is_rotated_and_no_read_fails_and_no_link_is_refused(
    facility: Facility,
) -> None:
    files = []
    for number in range(12):
        data = os.urandom((1 << 20) + number)
        files.append((facility.upload(f"rotate-{time.time_ns()}.bin", data), data))
    names = ("tokens.key", "links.key", "catalog.password", "ca.crt")
    read = {name: f"cat {SECRETS}/{name}" for name in names}
    before = {name: facility.ssh("control", command) for name, command in read.items()}
    shown = serials(facility)
    old = tuple(
        (facility.directory / name).read_text() for name in ("s3_access_key", "s3_secret_key")
    )
    new = (secrets.token_hex(10), secrets.token_hex(20))
    token = facility.token("read")
    bucket_takes(facility, old, new)
    for name, value in zip(("s3_access_key", "s3_secret_key"), new, strict=True):
        (facility.directory / name).write_text(value)
    begun = time.monotonic()
    # All clients verify with the authority that was there before.
    with (
        reading(facility, files, threads=3, pause=0.1) as load,
        links_held(facility, *files[0]) as held,
    ):
        output = facility.playbook(
            "playbooks/rotate_secrets.yml",
            "-e", json.dumps({"rotate": "links,tokens,database,tls,bucket",
                              "rotate_links_seconds": LINKS_SECONDS}),
        )  # fmt: skip
    print(
        f"\nall secrets rotated in {time.monotonic() - begun:.0f} s: {load.sentence()};"
        f" {held['used']} links used after {HELD_SECONDS:.0f} s, {len(held['refused'])} refused"
    )
    assert load.failures == []
    assert held["refused"] == []
    assert load.requests > 100 and held["used"] > 10
    for secret in (*old, *new):
        assert secret not in output
    after = {name: facility.ssh("control", command) for name, command in read.items()}
    for name in names:
        assert after[name] != before[name]
    assert len(after["links.key"].splitlines()) == len(after["catalog.password"].split()) == 1
    assert not set(shown) & set(serials(facility)), "a balancer shows its old certificate"

    # The old ones are worth nothing, where they go by themselves...
    bucket_takes(facility, new)
    cold = [facility.upload(f"cold-{time.time_ns()}.bin", data) for _, data in files[:8]]
    for product, (_, data) in zip(cold, files, strict=False):
        assert facility.read(facility.link(product)) == data
    # ...and the new authority alone is enough for who has its certificate.
    alone = facility.directory / "newest.crt"
    alone.write_text(facility.ssh("control", f"openssl x509 -in {SECRETS}/ca.crt") + "\n")
    with urllib3.PoolManager(ca_certs=str(alone)) as pool:
        for node in NODES:
            assert pool.request("GET", f"{facility.url(node)}/lb-health").status == 200
    # Tokens go when people say so.
    path = f"/v1/products/{cold[0]['id']}"
    assert facility.request("GET", path, token=token).status == 200
    facility.playbook("playbooks/rotate_secrets.yml", "-e", "drop=tokens,tls")
    assert facility.request("GET", path, token=token).status == 401
    facility.forget_tokens()
    assert len(facility.ssh("control", read["tokens.key"]).splitlines()) == 1
    for product in [*cold, *(product for product, _ in files)]:
        facility.remove(product)


@pytest.mark.parametrize("said", ["rotate=link", "drop=links", "x=y"])
def test_a_rotation_that_is_not_known_is_refused_before_anything_changes(
    facility: Facility, said: str
) -> None:
    output = facility.playbook("playbooks/rotate_secrets.yml", "-e", said, check=False)
    assert "Nothing was changed" in " ".join(output.split())
