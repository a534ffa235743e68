"""A short slice of the campaign: clients, two services, kills; no promise is broken.

A failure prints the seed and where the history is; ``make campaign SECONDS=... SEED=...`` goes on.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign.__main__ import table
from tests.campaign.driver import DEFAULT_FAULTS, run
from tests.campaign.site import site

SECONDS = 10
#: Fewer say little; a busy machine takes longer for them.
REQUESTS = 400


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("backend", "catalog"), [("posix", "sqlite"), ("s3", "postgresql")])
def test_under_kills_drops_and_two_services_every_promise_is_kept(
    backend: str, catalog: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    s3 = request.getfixturevalue("s3_server") if backend == "s3" else None
    database = request.getfixturevalue("database") if catalog == "postgresql" else None
    with site(tmp_path, backend, catalog, s3, database) as made:
        report = run(made, SECONDS, seed=1, faults=DEFAULT_FAULTS, at_least=REQUESTS)
    figures = table(report)
    print(figures)
    assert not report.violations, f"history in {tmp_path}\n{figures}"
    done = sum(counts.get("ok", 0) for counts in report.operations.values())
    assert done > 20, f"too little happened to say anything\n{figures}"
    assert report.faults.get("restarts", 0) + report.faults.get("kill process", 0) > 0, figures
