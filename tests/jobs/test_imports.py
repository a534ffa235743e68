"""Bulk imports and removals: every item has its outcome, whatever the others are like."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import urllib3
from blake3 import blake3

from tests.generator import make_s1, make_s3, make_s5p
from tests.jobs.support import NDJSON, begin, counts, ended, files, items, manifest, names
from tests.support.servers import ROOT, Service, wait_until


@pytest.fixture
def inbox(service: Service, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own among the sources."""
    directory = service.directory / "inbox" / request.node.name.partition("[")[0][5:60]
    directory.mkdir(exist_ok=True)
    return directory


def test_a_manifest_becomes_products_and_its_bad_lines_are_told_by_number(service, inbox) -> None:
    lines = files(inbox, 14, seed=1)
    lines[3]["sha256"] = "0" * 64
    lines[4]["md5"] = hashlib.md5(b"other").hexdigest()
    lines[5]["size"] = 7
    (inbox / "p1-00006.bin").unlink()
    lines[7]["source"] = "file:///etc/passwd"
    lines[8]["unknown"] = 1
    raw = [json.dumps(line).encode() for line in lines]
    raw[9] = b"{broken"
    raw[10] = b'{"source": "' + b"x" * 10_000_000 + b'"}'
    raw[11] = b'{"source": "file:///\xff"}'
    raw[12] = b"[" * 100_000
    body = b"\xef\xbb\xbf" + b"\r\n".join([*raw, b"", raw[0]])  # BOM, CRLF, no end of line
    job = ended(service, begin(service, body))
    assert counts(job) == {"received": 15, "done": 4, "skipped": 1, "failed": 10}
    failed = {item["number"]: item["code"] for item in items(service, job["id"], "?outcome=failed")}
    assert failed == {
        4: "digest_mismatch",
        5: "digest_mismatch",
        6: "size_mismatch",
        7: "source_not_found",
        8: "source_denied",
        9: "invalid_request",
        10: "invalid_request",
        11: "too_large",
        12: "invalid_request",
        13: "invalid_request",
    }
    # Of the line that comes twice, side by side, one makes the product.
    assert [item["number"] for item in items(service, job["id"], "?outcome=skipped")] in ([1], [16])
    assert len(names(service, "p1-")) == 4
    assert {error["code"]: error["count"] for error in job["errors"]}["invalid_request"] == 4
    assert sum(error["count"] for error in job["errors"]) == 10


def test_work_begins_while_the_manifest_is_still_arriving(service, inbox) -> None:
    lines = files(inbox, 40, seed=2)
    go_on = threading.Event()

    def body():
        yield manifest(lines[:20])
        assert go_on.wait(60)
        yield manifest(lines[20:])

    found = {}

    def send() -> None:
        found["answer"] = service.request("POST", "/v1/imports", body(), NDJSON)

    thread = threading.Thread(target=send)
    thread.start()
    wait_until(lambda: len(names(service, "p2-")) >= 4, 60, "products of a manifest's beginning")
    job = service.json("GET", "/v1/jobs?state=receiving")["jobs"][0]
    assert job["received"] < 40
    go_on.set()
    thread.join()
    assert found["answer"].status == 202
    assert found["answer"].headers["Location"] == f"/v1/jobs/{job['id']}"
    assert counts(ended(service, job["id"])) == {"received": 40, "done": 40}


def test_the_same_manifest_again_touches_neither_sources_nor_store(service, inbox) -> None:
    lines = files(inbox, 30, seed=3)
    assert ended(service, begin(service, lines))["done"] == 30
    for path in inbox.iterdir():
        path.unlink()
    again = ended(service, begin(service, lines))
    assert counts(again) == {"received": 30, "skipped": 30}


def test_the_same_manifest_twice_at_once_gives_each_product_once(service, inbox) -> None:
    lines = files(inbox, 40, seed=4)
    jobs = [begin(service, lines), begin(service, lines)]
    both = [ended(service, job) for job in jobs]
    assert sum(job["done"] for job in both) == 40
    assert sum(job["skipped"] for job in both) == 40
    assert len(names(service, "p4-")) == 40
    events = service.json("GET", "/v1/events?limit=1000&order=desc")["events"]
    assert sum((event["product_name"] or "").startswith("p4-") for event in events) == 40


def test_an_idempotency_key_makes_one_job_of_two_requests(service, inbox) -> None:
    lines = files(inbox, 3, seed=5)
    headers = {**NDJSON, "Idempotency-Key": "import-5"}
    answers = [
        service.json("POST", "/v1/imports", manifest(lines), 202, headers=headers) for _ in "12"
    ]
    assert answers[0]["id"] == answers[1]["id"]
    other = manifest(lines[:2])
    assert service.json("POST", "/v1/imports", other, 422, headers=headers)["code"] == (
        "idempotency_key_reused"
    )


def test_a_list_of_objects_urls_and_stac_items_is_imported(service, inbox) -> None:
    plain, url, asset, first, second = files(inbox, 5, seed=6)
    data = (inbox / "p6-00002.bin").read_bytes()
    stac = {
        "type": "Feature",
        "id": "one",
        "assets": {
            "product": {
                "href": asset["source"],
                "file:size": asset["size"],
                "file:checksum": "1e20" + blake3(data).hexdigest(),
            },
            "quicklook": {"href": "https://elsewhere.example/q.png", "roles": ["thumbnail"]},
        },
    }
    job = service.json("POST", "/v1/imports", {"items": [plain, url["source"], stac]}, 202)
    assert counts(ended(service, job["id"])) == {"received": 3, "done": 3}
    tree = {
        "type": "Feature",
        "id": "p6-tree",
        "assets": {
            "a": {"href": first["source"], "file:checksum": "1220" + first["sha256"]},
            "b": {"href": second["source"], "file:checksum": "1220" + "0" * 64},
        },
    }
    odd = {**tree, "assets": {"a": {"href": first["source"], "file:checksum": "1b20" + "0" * 64}}}
    body = {"type": "FeatureCollection", "features": [tree, odd, {**tree, "assets": {}}]}
    job = service.json("POST", "/v1/imports", body, 202)
    assert counts(ended(service, job["id"])) == {"received": 3, "failed": 3}
    codes = [item["code"] for item in items(service, job["id"])]
    assert codes == ["digest_mismatch", "invalid_request", "invalid_request"]


def test_a_directory_is_searched_for_products_by_their_names(service, inbox) -> None:
    day = inbox / "2021" / "04"
    day.mkdir(parents=True)
    trees = [make_s1(day, seed=81), make_s3(day, seed=82)]
    loose = [make_s5p(inbox, seed=83), make_s5p(day, seed=84)]
    (day / "readme.txt").write_text("a stray")
    (day / "link").symlink_to("/etc/passwd")
    body = {"source": inbox.as_uri(), "strays": "skip", "verification": "manifest"}
    job = ended(service, service.json("POST", "/v1/imports", body, 202)["id"])
    assert counts(job) == {"received": 5, "done": 4, "failed": 1}
    told = {item["item"].rpartition("/")[2]: item for item in items(service, job["id"])}
    assert told["link"]["code"] == "source_denied"
    assert {path.name for path in trees + loose} == told.keys() - {"link"}
    body |= {"strays": "fail", "dry_run": True}
    job = ended(service, service.json("POST", "/v1/imports", body, 202)["id"])
    assert counts(job) == {"received": 6, "skipped": 4, "failed": 2}
    outside = service.json("POST", "/v1/imports", {"source": "file:///etc"}, 403)
    assert outside["code"] == "source_denied"


def test_a_dry_run_says_what_would_happen_and_changes_nothing(service, inbox) -> None:
    lines = files(inbox, 4, seed=7)
    assert ended(service, begin(service, lines[:1]))["done"] == 1
    (inbox / "p7-00003.bin").unlink()
    job = ended(service, begin(service, lines, "?dry_run=true"))
    assert counts(job) == {"received": 4, "done": 2, "skipped": 1, "failed": 1}
    told = [item["result"] or item["code"] for item in items(service, job["id"])]
    assert told == ["skipped", "would be created", "would be created", "source_not_found"]
    assert len(names(service, "p7-")) == 1


def test_failed_items_are_retried_once_they_are_mended(service, inbox) -> None:
    lines = files(inbox, 6, seed=8)
    hidden = [inbox / f"p8-0000{number}.bin" for number in (1, 4)]
    for path in hidden:
        path.rename(path.with_suffix(".away"))
    body = manifest(lines) + b"{broken\n"
    job = ended(service, begin(service, body))
    assert counts(job) == {"received": 7, "done": 4, "failed": 3}
    for path in hidden:
        path.with_suffix(".away").rename(path)
    answer = service.json("POST", f"/v1/jobs/{job['id']}/retry?code=source_not_found")
    assert answer["retried"] == 2
    job = ended(service, job["id"])
    assert counts(job) == {"received": 7, "done": 6, "failed": 1}
    assert [error["code"] for error in job["errors"]] == ["invalid_request"]
    assert service.json("POST", f"/v1/jobs/{job['id']}/retry")["retried"] == 0


def test_a_paused_job_begins_nothing_and_a_cancelled_one_never_does(service, inbox) -> None:
    blocked = begin(service, files(inbox, 30, seed=9), "?priority=-100&concurrency=1")
    service.json("POST", f"/v1/jobs/{blocked}/pause")

    def rests() -> bool:
        return service.json("GET", f"/v1/jobs/{blocked}")["running"] == 0

    wait_until(rests, 60, "the end of the items under way")
    job = service.json("GET", f"/v1/jobs/{blocked}")
    assert job["state"] == "paused"
    after = ended(service, begin(service, files(inbox, 3, seed=10)))
    assert after["done"] == 3
    assert service.json("GET", f"/v1/jobs/{blocked}")["queued"] == job["queued"]
    service.json("POST", f"/v1/jobs/{blocked}/resume")
    service.json("DELETE", f"/v1/jobs/{blocked}")
    job = ended(service, blocked)
    assert job["state"] == "cancelled"
    assert job["done"] + job["cancelled"] == 30
    assert len(names(service, "p9-")) == job["done"]
    assert service.json("DELETE", f"/v1/jobs/{blocked}")["state"] == "cancelled"
    service.json("POST", f"/v1/jobs/{blocked}/retry", None, 400)
    service.json("POST", f"/v1/jobs/{blocked}/pause", None, 400)


def test_a_restricted_token_imports_its_own_missions_item_by_item(service, inbox) -> None:
    mine = service.token("ingest", missions=["S5P"], subject="s5p-team")
    own, foreign = make_s5p(inbox, seed=91), make_s3(inbox, seed=92)
    lines = [{"source": path.as_uri()} for path in (own, foreign)]
    headers = {**NDJSON, "Idempotency-Key": "restricted"}
    answers = [
        service.json("POST", "/v1/imports", manifest(lines), 202, headers=headers, token=mine)
        for _ in "12"
    ]
    assert answers[0]["id"] == answers[1]["id"]
    job = ended(service, answers[0]["id"], token=mine)
    assert counts(job) == {"received": 2, "done": 1, "failed": 1}
    assert job["errors"][0]["code"] == "forbidden"
    other = service.token("ingest", "read", subject="somebody-else")
    assert service.request("GET", f"/v1/jobs/{job['id']}", token=other).status == 404
    assert service.json("GET", "/v1/jobs", token=other)["jobs"] == []
    assert job["id"] in [found["id"] for found in service.json("GET", "/v1/jobs")["jobs"]]


def test_signatures_in_sources_are_in_no_report_and_no_log(service, inbox) -> None:
    line = {"source": "https://nobody.example/a.nc?X-Amz-Signature=canary-signature"}
    job = ended(service, begin(service, [line]))
    answer = service.request("GET", f"/v1/jobs/{job['id']}/items").data
    assert b"a.nc" in answer
    for text in (answer.decode(), json.dumps(job), service.log()):
        assert "canary-signature" not in text


def test_jobs_are_listed_page_by_page_the_newest_first(service, inbox) -> None:
    made = [begin(service, files(inbox, 1, seed=20 + number)) for number in range(3)]
    page = service.json("GET", "/v1/jobs?limit=2")
    assert [job["id"] for job in page["jobs"]] == made[:0:-1]
    following = service.json("GET", f"/v1/jobs?limit=2&cursor={page['next']}")
    assert following["jobs"][0]["id"] == made[0]
    service.json("GET", "/v1/jobs?cursor=nonsense", None, 400)
    ended(service, made[0])
    first = service.json("GET", f"/v1/jobs/{made[0]}")
    assert service.json("GET", "/v1/jobs?kind=removal&subject=nobody")["jobs"] == []
    query = f"/v1/jobs?state=done&created_to={first['created_at'].replace('+', '%2B')}"
    assert service.json("GET", query)["jobs"][0]["id"] == made[0]


def test_the_items_of_a_job_are_read_from_a_cursor_on(service, inbox) -> None:
    job = ended(service, begin(service, files(inbox, 12, seed=30)))
    found = items(service, job["id"])
    assert [item["number"] for item in found] == list(range(1, 13))
    assert all(item["product"] and item["outcome"] == "done" for item in found)
    answer = service.request("GET", f"/v1/jobs/{job['id']}/items?outcome=done&limit=5")
    *first, summary = [json.loads(line) for line in answer.data.splitlines()]
    rest = items(service, job["id"], f"?outcome=done&after={summary['next']}")
    assert sorted(item["number"] for item in first + rest) == list(range(1, 13))
    assert service.request("GET", "/v1/jobs/none/items").status == 404


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {"Content-Type": "text/plain"}, 415),
        (b"{", {"Content-Type": "application/json"}, 400),
        (b"{}", {"Content-Type": "application/json"}, 400),
        (b'{"items": [], "source": "file:///x"}', {"Content-Type": "application/json"}, 400),
        (b'{"source": "https://x.example/"}', {"Content-Type": "application/json"}, 403),
        (b'{"items": [], "mode": "move"}', {"Content-Type": "application/json"}, 400),
    ],
)
def test_what_is_no_import_is_refused_as_a_whole(service, body, headers, status) -> None:
    assert service.request("POST", "/v1/imports", body, headers).status == status


def test_an_empty_manifest_is_a_job_that_has_ended(service) -> None:
    assert counts(ended(service, begin(service, b""))) == {}


def test_a_client_that_drops_leaves_a_job_that_says_so(service, inbox) -> None:
    lines = files(inbox, 30, seed=40)

    def body():
        yield manifest(lines[:20])
        raise ConnectionAbortedError

    with pytest.raises((ConnectionAbortedError, urllib3.exceptions.HTTPError)):
        service.request("POST", "/v1/imports", body(), NDJSON)
    wait_until(lambda: names(service, "p40-"), 60, "the first products")

    def job() -> dict:
        return service.json("GET", "/v1/jobs")["jobs"][0]

    wait_until(lambda: job()["state"] == "done", 90, "the end of the job")
    assert job()["problem"]["code"] == "incomplete_body"
    assert job()["done"] == job()["received"] == len(names(service, "p40-"))


def test_products_are_removed_by_list_and_kept_ones_stay(service, inbox) -> None:
    assert ended(service, begin(service, files(inbox, 6, seed=50)))["done"] == 6
    found = service.json("GET", "/v1/products?name_prefix=p50-")["products"]
    held, retained, *rest = found
    service.json("PATCH", f"/v1/products/{held['id']}", {"hold": "evidence"})
    later = {"retention": "2101-01-01T00:00:00Z"}
    service.json("PATCH", f"/v1/products/{retained['id']}", later)
    told = [held["id"], {"name": retained["name"]}, *(item["id"] for item in rest), rest[0]["id"]]
    told += [{"id": "nothing"}, {"id": "a", "name": "b"}]
    job = service.json("POST", "/v1/removals", {"items": told, "cause": "a test"}, 202)
    job = ended(service, job["id"])
    assert counts(job) == {"received": 9, "done": 4, "skipped": 1, "failed": 4}
    codes = [item["code"] for item in items(service, job["id"])]
    assert codes == ["held", "retained", *[None] * 5, "not_found", "invalid_request"]
    assert names(service, "p50-") == sorted([held["name"], retained["name"]])
    tombstone = service.json("GET", f"/v1/products/{rest[0]['id']}")
    assert (tombstone["state"], tombstone["removed_cause"]) == ("removed", "a test")


def test_products_are_removed_by_filter_after_a_dry_run(service, inbox) -> None:
    assert ended(service, begin(service, files(inbox, 5, seed=51)))["done"] == 5
    body = {"filter": {"name_prefix": "p51-"}, "dry_run": True}
    job = ended(service, service.json("POST", "/v1/removals", body, 202)["id"])
    assert counts(job) == {"received": 5, "done": 5}
    assert len(names(service, "p51-")) == 5
    body["dry_run"] = False
    job = ended(service, service.json("POST", "/v1/removals", body, 202)["id"])
    assert counts(job) == {"received": 5, "done": 5}
    assert job["bytes"] == 5 * 2_000
    assert names(service, "p51-") == []
    service.json("POST", "/v1/removals", {"filter": {}}, 400)


def test_the_command_imports_reports_retries_and_removes(service, inbox) -> None:
    lines = files(inbox, 8, seed=60)
    away = inbox / "p60-00002.bin"
    away.rename(inbox / "hidden")
    path = inbox / "manifest.ndjson"
    path.write_bytes(manifest(lines))
    done = service.cli("import", str(path), check=False)
    assert done.returncode == 7
    assert "3  failed" in done.stdout
    assert "1 of 8 items failed (1 source_not_found)" in done.stderr
    job = service.json("GET", "/v1/jobs")["jobs"][0]["id"]
    assert "1 items: source_not_found" in service.cli("jobs", "show", job).stdout
    (inbox / "hidden").rename(away)
    assert "8 done" in service.cli("jobs", "retry", job).stdout
    assert "8 done" in service.cli("jobs", "watch", job).stdout
    assert job in service.cli("jobs", "ls").stdout
    listed = service.cli("--json", "jobs", "items", job, "--outcome", "done").stdout.splitlines()
    assert {json.loads(line)["number"] for line in listed} == set(range(1, 9))
    dry = service.cli("rm", "--filter", "name_prefix=p60-", "--dry-run").stdout
    assert dry.count("would be removed") == 8
    assert "8 done" in service.cli("rm", "--filter", "name_prefix=p60-").stdout
    assert names(service, "p60-") == []
    assert service.cli("import", "not-there", check=False).returncode == 2
    whole = service.cli("import", str(inbox), "--strays", "skip").stdout
    assert "0 done" in whole


def test_ogc_clients_execute_poll_and_get_their_results(service, inbox) -> None:
    found = service.json("GET", "/v1/ogc/processes")["processes"]
    assert [process["id"] for process in found] == ["import", "remove"]
    assert "source" in service.json("GET", "/v1/ogc/processes/import")["inputs"]
    inputs = {"inputs": {"items": files(inbox, 3, seed=70)}}
    answer = service.request("POST", "/v1/ogc/processes/import/execution", inputs)
    assert answer.status == 201, answer.data
    place = answer.headers["Location"]
    statuses = ("successful", "failed", "dismissed")
    wait_until(lambda: service.json("GET", place)["status"] in statuses, 60, "the job's end")
    status = service.json("GET", place)
    assert (status["status"], status["progress"], status["processID"]) == (
        "successful",
        100,
        "import",
    )
    results = service.json("GET", f"{place}/results")
    assert results["report"]["done"] == 3
    assert len(service.request("GET", results["items"]["href"]).data.splitlines()) == 4
    inputs = {"inputs": {"filter": {"name_prefix": "p70-"}}}
    answer = service.json("POST", "/v1/ogc/processes/remove/execution", inputs, 201)
    assert ended(service, answer["jobID"])["done"] == 3
    service.json("GET", "/v1/ogc/processes/other", None, 404)
    service.json("POST", "/v1/ogc/processes/import/execution", {"inputs": {}}, 400)


def test_digests_of_other_algorithms_are_compared_and_unknown_ones_refused(service, inbox) -> None:
    lines = files(inbox, 5, seed=71)
    for number, line in enumerate(lines):
        data = (inbox / f"p71-{number:05}.bin").read_bytes()
        del line["sha256"]
        line["digests"] = {
            "SHA3-256": hashlib.sha3_256(data).hexdigest().upper(),
            "BLAKE3": blake3(data).hexdigest(),
        }
    lines[1]["digests"] = {"sha3_256": "0" * 64}
    lines[2]["digests"] = {"BLAKE3": "0" * 64}
    lines[3]["digests"] = {"SHA-512": "0" * 64}
    lines[4]["digests"] = {"Whirlpool": "0" * 128}
    job = ended(service, begin(service, lines))
    codes = [item["code"] for item in items(service, job["id"])]
    assert codes == [None, *2 * ["digest_mismatch"], *2 * ["invalid_request"]]
    again = ended(service, begin(service, lines[:1]))
    assert counts(again) == {"received": 1, "skipped": 1}


def test_an_interrupted_command_leaves_its_job_and_says_how_to_come_back(service, inbox) -> None:
    path = inbox / "manifest.ndjson"
    path.write_bytes(manifest(files(inbox, 600, seed=72)))
    command = [sys.executable, "-m", "admin_api", "--url", service.url]
    command += ["--token-file", str(service.token_file())]
    process = subprocess.Popen(
        [*command, "import", str(path), "--concurrency", "1"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # Ignored where the tests run in the background of a script, and inherited then.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    told = next(line for line in process.stderr if line.startswith("job "))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    job = told.split()[1]
    assert process.returncode == 130
    assert f"storage-manager jobs watch {job}" in error
    assert ended(service, job)["done"] == 600
