"""The service in a browser: a front page, an API page behind a token, names for clients."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from urllib.parse import urljoin

from tests.support.servers import wait_until


def as_password(token: str) -> dict[str, str]:
    """What a browser sends of a name and a password that were typed in."""
    return {"Authorization": "Basic " + base64.b64encode(f"me:{token}".encode()).decode()}


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found += [value for name, value in attributes if name == "href"]


def test_the_front_page_says_what_this_is_and_whether_it_is_well_and_nothing_secret(
    make_service,
) -> None:
    service = make_service()
    service.start()

    def page() -> str:
        answer = service.request("GET", "/", token=None)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        return answer.data.decode()

    wait_until(lambda: "Health: <strong>ok</strong>" in page(), 30, "health")
    assert str(service.directory) not in page()
    assert "://" not in page()
    links = _Links()
    links.feed(page())
    assert len(links.found) == 3
    for link in links.found:
        answer = service.request(
            "GET", urljoin("/", link), token=None, headers=as_password(service.token("read"))
        )
        assert answer.status == 200, link
    (service.directory / "store").rename(service.directory / "gone")
    wait_until(lambda: "Health: <strong>failing</strong>" in page(), 60, "ill health")
    assert str(service.directory) not in page()


def test_a_browser_reads_the_api_page_with_a_token_typed_in_and_nothing_else_so(
    make_service,
) -> None:
    service = make_service()
    service.start()
    refused = service.request("GET", "/openapi/swagger", token=None)
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"].startswith("Basic ")
    typed = as_password(service.token("read"))
    for path in ("/openapi/swagger", "/openapi/swagger/js/swagger-ui-bundle.js"):
        assert service.request("GET", path, token=None, headers=typed).status == 200
    assert (
        service.json("GET", "/openapi/openapi.json", token=None, headers=typed)["openapi"]
        == "3.1.0"
    )
    wrong = as_password("no-token")
    assert service.request("GET", "/openapi/swagger", token=None, headers=wrong).status == 401
    answer = service.request("GET", "/v1/products", token=None, headers=typed)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")


def test_clients_made_from_the_description_have_names_that_say_what_is_done(make_service) -> None:
    service = make_service()
    service.start()
    described = service.json("GET", "/openapi/openapi.json")
    operations = [operation for item in described["paths"].values() for operation in item.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    assert {"listProducts", "getProduct", "createImport", "getProductArchive"} <= set(ids)
    assert all(re.fullmatch(r"[a-z]+([A-Z][a-z]+)*", name) for name in ids)
    assert all(operation["description"] for operation in operations)
    assert described["servers"][0]["url"] == "/"
