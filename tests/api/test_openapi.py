"""The description is true: schemathesis asks everything it can, with tokens of different scopes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import Service

# What the documents promise is checked; whether a good request is always taken is not schemathesis'
# to know (a name can be refused by the key grammar, a source can be missing).
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,unsupported_method,ignored_auth"
)


#: PostgreSQL takes less than SQLite does.
@pytest.mark.parametrize("service", ["s3-postgresql"], indirect=True)
@pytest.mark.parametrize(
    "scopes",
    [
        ("read",),
        pytest.param(("ingest",), marks=pytest.mark.drill),
        pytest.param(("remove", "read"), marks=pytest.mark.drill),
        ("admin",),
    ],
)
def test_no_server_error_and_no_undocumented_answer(
    service: Service, scopes, tmp_path: Path
) -> None:
    description = tmp_path / "openapi.json"
    described = service.request("GET", "/openapi/openapi.json").data
    # Nothing writes bodies of tus's media type here; test_resumable.py does.
    description.write_bytes(described.replace(b"/offset+octet-stream", b"/octet-stream"))
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            str(description),
            "--url",
            service.url,
            "--header",
            f"Authorization: Bearer {service.token(*scopes)}",
            "--checks",
            CHECKS,
            "--exclude-path-regex",
            "maintenance/probe",
            "--max-examples",
            "15",
            "--phases",
            "examples,coverage,fuzzing",
            "--seed",
            "7",
            "--no-color",
            "--suppress-health-check",
            "all",
            "--request-timeout",
            "60",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=560,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_every_operation_says_what_it_is(service: Service) -> None:
    described = service.json("GET", "/openapi/openapi.json")
    assert described["openapi"].startswith("3.1")
    for path, item in described["paths"].items():
        for method, operation in item.items():
            assert operation["summary"], (method, path)
            assert {"200", "201", "202", "204"} & set(operation["responses"])
