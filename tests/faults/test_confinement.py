"""What may be registered in place: nobody else's files, and nothing of the service's own (I9)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.servers import Service

S1 = "S1B_IW_GRDH_1SDV_20210401T052623_20210401T052648_026269_032297_ECC8.SAFE"
S2 = "S2A_MSIL1C_20210403T101021_N0300_R022_T33TUM_20210403T110551.SAFE"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> tuple[Service, Path]:
    from tests.support.servers import service_in

    directory = tmp_path_factory.mktemp("confinement")
    service = service_in(directory, {"type": "posix", "root": directory / "store"})
    service.start()
    yield service, directory / "store"
    service.stop()


def register(service: Service, source: str, name: str, token: str | None = "") -> tuple[int, dict]:
    answer = service.request(
        "POST",
        "/v1/products",
        {"name": name, "source": source, "mode": "register"},
        token=token,
    )
    return answer.status, json.loads(answer.data)


def test_a_product_and_a_running_upload_cannot_be_registered_as_another_product(store) -> None:
    service, root = store
    product = service.json("PUT", "/v1/uploads/owned", b"theirs", 201)
    session = service.json("POST", "/v1/uploads", {"name": "running"}, 201)
    service.json("PUT", f"/v1/uploads/{session['id']}/part", b"half", 201)
    for source in (
        product["files"][0]["uri"],
        product["uri"],
        (root / "unsorted/running/part").as_uri(),
        (root / "unsorted/running").as_uri(),
        (root / "unsorted").as_uri(),
    ):
        status, answer = register(service, source, "stolen")
        assert (status, answer["code"]) == (403, "source_denied"), source
    assert service.json("POST", f"/v1/uploads/{session['id']}/commit", {}, 201)
    assert service.json("GET", "/v1/products?name=stolen")["products"] == []


def test_the_services_own_places_cannot_be_registered_however_they_are_written(store) -> None:
    service, root = store
    service.json("PUT", "/v1/uploads/recorded", b"x", 201)
    base = root.as_uri()
    for path in (
        "/.products",
        "//.products",
        "/.products/",
        "/%2Eproducts",
        "/./.products",
        "/x/../.products",
        "",
        "/",
        "/.tmp",
    ):
        status, answer = register(service, base + path, "records")
        assert status in (400, 403, 422), (path, status, answer)
    assert service.json("GET", "/v1/products?name=records")["products"] == []


def test_a_token_of_one_mission_registers_nothing_of_another(store) -> None:
    service, root = store
    for place in (
        f"archive/{S2}/manifest.safe",
        "S2/loose/file",
        "S6/loose/file",
        "archive/free/file",
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(b"x")
    token = service.token("ingest", missions=["S1"], subject="s1-only")
    for place in (
        f"archive/{S2}",
        f"archive/{S2}/manifest.safe",
        "S2/loose",
        "S6/loose",
        "archive",
    ):
        status, answer = register(service, (root / place).as_uri(), S1, token)
        assert (status, answer["code"]) == (403, "source_denied"), place
    assert register(service, (root / "archive/free").as_uri(), S1, token)[0] == 201


def test_registered_files_stay_registrable_side_by_side_and_never_twice(store) -> None:
    service, root = store
    shared = root / "shared-directory"
    shared.mkdir()
    for name in ("one", "two"):
        (shared / name).write_bytes(name.encode())
        assert register(service, (shared / name).as_uri(), name)[0] == 201
    status, answer = register(service, (shared / "one").as_uri(), "one-again")
    assert (status, answer["code"]) == (409, "already_exists")
