"""SIGHUP: new settings are taken up, nothing that is under way is cut, no request fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

from tests.support.servers import toml, wait_until


def test_new_settings_are_taken_up_while_an_upload_goes_on_and_no_request_fails(
    make_service, tmp_path
) -> None:
    service = make_service()
    service.start()
    begun, go_on = threading.Event(), threading.Event()

    def body() -> Iterator[bytes]:
        yield b"a" * 100_000
        begun.set()
        go_on.wait(60)
        yield b"b" * 100_000

    statuses: list[int] = []
    upload = threading.Thread(
        target=lambda: statuses.append(
            service.request("PUT", "/v1/uploads/slow.bin", body()).status
        )
    )
    upload.start()
    assert begun.wait(60)
    before = service.settings_file.read_text()
    more = {"backend": {"type": "posix", "root": tmp_path / "more"}, "path": "more"}
    one = service.settings_file.parent / "store"
    mounts = {"mounts": [{"backend": {"type": "posix", "root": one}}, more]}
    kept = [line for line in before.splitlines() if not line.startswith("storage = ")]
    service.settings_file.write_text(toml({"storage": mounts}) + "\n".join(kept) + "\n")
    asked: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            asked.append(service.pool.request("GET", f"{service.url}/healthz/live").status)

    asker = threading.Thread(target=ask)
    asker.start()
    os.kill(service.process.pid, signal.SIGHUP)
    wait_until(
        lambda: {len(service.json("GET", "/v1/storage")["mounts"]) for _ in range(10)} == {2},
        60,
        "the second mount",
    )
    time.sleep(2)
    stop.set()
    asker.join()
    assert set(asked) == {200}
    go_on.set()
    upload.join(60)
    assert statuses == [201]
    product = service.json("GET", "/v1/products?name=slow.bin")["products"]
    assert [item["size"] for item in product] == [200_000]


def test_wrong_settings_are_not_taken_up_and_the_service_goes_on(make_service) -> None:
    service = make_service()
    service.start()
    before = service.settings_file.read_text()
    service.settings_file.write_text(before + "\n[nonsense]\nvalue = 1\n")
    os.kill(service.process.pid, signal.SIGHUP)
    wait_until(lambda: "The settings are not taken up" in service.log(), 60, "the refusal")
    service.settings_file.write_text(before)
    for _ in range(5):
        assert service.request("GET", "/v1/products").status == 200
        time.sleep(0.2)
