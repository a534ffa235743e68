"""Manifests, and jobs that are waited for.  Used by the tests of bulk jobs."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from tests.support.servers import Service, wait_until

NDJSON = {"Content-Type": "application/x-ndjson"}


def files(directory: Path, count: int, seed: int, size: int = 2_000) -> list[dict[str, Any]]:
    """Small products in ``directory``, and a manifest's lines that tell of them."""
    directory.mkdir(parents=True, exist_ok=True)
    generator, lines = random.Random(seed), []
    for number in range(count):
        path, data = directory / f"p{seed}-{number:05}.bin", generator.randbytes(size)
        path.write_bytes(data)
        lines.append(
            {
                "source": path.as_uri(),
                "size": size,
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    return lines


def manifest(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def begin(service: Service, lines: list[dict[str, Any]] | bytes, query: str = "", **options) -> str:
    """Begin an import by manifest; the id of its job."""
    body = lines if isinstance(lines, bytes) else manifest(lines)
    answer = service.json("POST", f"/v1/imports{query}", body, 202, headers=NDJSON, **options)
    return answer["id"]


def ended(service: Service, job_id: str, seconds: float = 120, **options) -> dict[str, Any]:
    """The job once it has ended."""

    def look() -> dict[str, Any] | None:
        job = service.json("GET", f"/v1/jobs/{job_id}", **options)
        return job if job["state"] in ("done", "cancelled") else None

    return wait_until(look, seconds, f"the end of job {job_id}")


def items(service: Service, job_id: str, query: str = "", **options) -> list[dict[str, Any]]:
    """The lines of a job's report, without the summary."""
    answer = service.request("GET", f"/v1/jobs/{job_id}/items{query}", **options)
    assert answer.status == 200, answer.data
    lines = [json.loads(line) for line in answer.data.splitlines()]
    assert lines[-1]["type"] == "summary"
    return lines[:-1]


def counts(job: dict[str, Any]) -> dict[str, int]:
    """What is counted of a job, without what is zero."""
    names = ("received", "queued", "running", "done", "skipped", "failed", "cancelled")
    return {name: job[name] for name in names if job[name]}


def names(service: Service, prefix: str) -> list[str]:
    """The available products whose names begin like this."""
    found, cursor = [], ""
    while True:
        page = service.json("GET", f"/v1/products?name_prefix={prefix}&limit=1000{cursor}")
        found += [product["name"] for product in page["products"]]
        if not page["next"]:
            return found
        cursor = f"&cursor={page['next']}"
