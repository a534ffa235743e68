"""``GET /productfiles`` of what is staged: answered before Flask, as the view would answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from flask import Flask, request_started

from admin_api.errors import StagingTimeout
from admin_api.services import callers
from admin_api.services.access import Scope
from admin_api.services.callers import line_of
from admin_api.services.facility import Facility, open_facility
from admin_api.services.stage_cache import StageCache
from admin_api.settings import Settings
from admin_api.web.app import create_app
from tests.proseo.conftest import BASE, FACILITY_USER, WRAPPER, Facade, basic
from tests.support.servers import wait_until


def _paths(facade: Facade, product: str, *names: str) -> list[str]:
    files = [facade.file(name, name.encode()) for name in names]
    return facade.ingest(product, *files)["registeredFilesList"]


def _by_the_view(facade: Facade, path: str):
    """The same request in a form that is left to the view."""
    return facade.call(
        "GET",
        f"productfiles?pathInfo={quote(path, safe='')}&other=1",
        None,
        WRAPPER,
        {"Accept": "application/json; charset=UTF-8"},
    )


@pytest.mark.parametrize("name", ["hit.nc", "a hit + é%20.nc", "sub dir/hit.nc"])
def test_a_hit_is_answered_as_the_view_answers(facade: Facade, name: str) -> None:
    path = _paths(facade, f"4{len(name)}", name)[0]
    fast, slow = facade.fetch_answer(path), _by_the_view(facade, path)
    assert (fast.status, fast.data) == (slow.status, slow.data)
    assert fast.status == 200
    own = {"date", "x-request-id"}
    kept = [
        {key.lower(): value for key, value in answer.headers.items() if key.lower() not in own}
        for answer in (fast, slow)
    ]
    assert kept[0] == kept[1]


def test_what_is_deleted_is_no_hit_from_that_moment(facade: Facade) -> None:
    for turn in range(3):
        path = _paths(facade, f"42{turn}", f"gone-{turn}.nc")[0]
        facade.fetch(path)
        facade.delete(path)
        assert facade.fetch_answer(path).status == 404


def test_a_hit_needs_the_password_that_it_has_needed_before(facade: Facade) -> None:
    path = _paths(facade, "430", "closed.nc")[0]
    facade.fetch(path)
    where = f"productfiles?pathInfo={quote(path, safe='')}"
    for user in ((WRAPPER[0], "another-password"), ("nobody", WRAPPER[1]), None):
        answer = facade.call("GET", where, None, user)
        assert answer.status == 401
        assert "Basic" in answer.headers["WWW-Authenticate"]
    assert facade.call("GET", where, None, WRAPPER).status == 200


def test_a_hit_is_in_the_log_once_with_its_id(facade: Facade) -> None:
    path = _paths(facade, "440", "logged.nc")[0]
    facade.fetch(path)
    answer = facade.call(
        "GET",
        f"productfiles?pathInfo={quote(path, safe='')}",
        None,
        WRAPPER,
        {"X-Request-Id": "a-hit-in-the-log"},
    )
    assert answer.headers["X-Request-Id"] == "a-hit-in-the-log"

    def lines() -> list[dict]:
        found = [line for line in facade.service.log().splitlines() if "a-hit-in-the-log" in line]
        return [json.loads(line) for line in found]

    wait_until(lines, 10, "the line")
    (line,) = lines()
    assert line["request_id"] == "a-hit-in-the-log"
    assert (line["method"], line["status"], line["subject"]) == ("GET", 200, WRAPPER[0])
    assert line["path"] == f"{BASE}/productfiles"


def test_a_hit_is_counted_once_with_the_route_of_its_view(facade: Facade) -> None:
    path = _paths(facade, "450", "counted.nc")[0]
    facade.fetch(path)

    def counted() -> float:
        text = facade.service.pool.request("GET", f"{facade.service.metrics_url}/metrics").data
        route = 'route="/proseo/storage-mgr/<version>/productfiles",status="200"'
        lines = [line for line in text.decode().splitlines() if route in line and "GET" in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines if "_total" in line)

    before = counted()
    for _ in range(5):
        facade.fetch(path)
    wait_until(lambda: counted() == before + 5, 10, "the count")


@pytest.mark.parametrize("name", ["a%00b", "a%FFb", "a%0Ab", "%C0%80", "x" * 1000])
def test_a_name_that_no_file_can_have_is_missing_and_no_error_of_the_catalog(facade, name) -> None:
    where = quote(facade.root, safe="")
    answer = facade.call("GET", f"productfiles?pathInfo={where}%2F{name}", None, WRAPPER)
    assert answer.status == 404, answer.headers


# -- within the process ------------------------------------------------------------------------
@pytest.fixture
def facility(tmp_path: Path) -> Iterator[Facility]:
    (tmp_path / "keys").write_text(f"k1 {'0123456789abcdef' * 4}\n")
    callers = [
        line_of(*FACILITY_USER, list(Scope), None),
        line_of(*WRAPPER, [Scope.READ], ["S1"]),
        line_of("remover", "remover-password", [Scope.REMOVE], None),
    ]
    (tmp_path / "callers").write_text("\n".join(callers))
    (tmp_path / "store").mkdir()
    settings = Settings.model_validate(
        {
            "state_dir": tmp_path / "state",
            "storage": {"mounts": [{"backend": {"type": "posix", "root": tmp_path / "store"}}]},
            "auth": {"key_file": tmp_path / "keys"},
            "staging": {"directory": tmp_path / "cache", "in_place": False},
            "proseo": {
                "enabled": True,
                "accept": ["basic", "token"],
                "callers_file": tmp_path / "callers",
            },
        }
    )
    made = open_facility(settings)
    yield made
    made.catalog.close()


@pytest.fixture
def app(facility: Facility) -> Flask:
    return create_app(facility)


@pytest.fixture
def stored(app: Flask, facility: Facility) -> str:
    """The path of a file of S2, as prosEO names it."""
    bearer = app.extensions["authority"].issue("tester", [Scope.ADMIN], timedelta(hours=1))
    name = "S2A_MSIL1C_20210403T101021_N0300_R022_T33TUM_20210403T110551.SAFE"
    made = app.test_client().put(
        f"/v1/uploads/{name}", data=b"tile", headers={"Authorization": f"Bearer {bearer}"}
    )
    assert made.status_code == 201, made.data
    return str(made.json["files"][0]["uri"]).removeprefix("file://")


Ask = Callable[..., tuple[int, dict[str, str]]]


@pytest.fixture
def ask(app: Flask, stored: str) -> Ask:
    def asked(user: tuple[str, str]) -> tuple[int, dict[str, str]]:
        url = f"{BASE}/productfiles?pathInfo={quote(stored, safe='')}"
        answer = app.test_client().get(url, headers=basic(user))
        return answer.status_code, dict(answer.headers)

    return asked


def test_hits_do_not_go_through_the_view(app: Flask, ask: Ask) -> None:
    taken_apart: list[object] = []
    with request_started.connected_to(lambda _, **__: taken_apart.append(1), app):
        assert ask(FACILITY_USER)[0] == 200
        assert ask(FACILITY_USER)[0] == 200
    assert taken_apart == []


def test_what_a_caller_may_not_see_is_no_hit_for_it(ask: Ask) -> None:
    assert ask(FACILITY_USER)[0] == 200
    assert ask(WRAPPER)[0] == 404
    assert ask(("remover", "remover-password"))[0] == 403


def test_what_failed_after_a_wait_is_told_and_not_waited_for_again(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[str] = []

    def late(self: StageCache, wanted) -> Path:
        waits.append(wanted.key)
        raise StagingTimeout("still being copied")

    monkeypatch.setattr(StageCache, "get", late)
    status, headers = ask(FACILITY_USER)
    assert status == 503
    assert "(E5561)" in headers["Warning"]
    assert len(waits) == 1


def test_a_wrong_password_is_tried_once_for_a_request(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses: list[str] = []
    verify = callers._verify

    def counted(secret: str, password: str) -> bool:
        guesses.append(password)
        return verify(secret, password)

    monkeypatch.setattr(callers, "_verify", counted)
    assert ask((FACILITY_USER[0], "a wrong password"))[0] == 401
    assert guesses == ["a wrong password"]


def test_a_catalog_that_is_away_is_told_as_the_view_tells_it(facility: Facility, ask: Ask) -> None:
    assert ask(FACILITY_USER)[0] == 200
    (facility.settings.state_dir / "catalog.sqlite").rename(
        facility.settings.state_dir / "elsewhere"
    )
    status, headers = ask(FACILITY_USER)
    assert status == 500
    assert "(E5555)" in headers["Warning"]
