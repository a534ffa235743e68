"""Fixtures: real servers, shared by a whole run; a missing part is a failure in CI, a skip elsewhere."""

from __future__ import annotations

import os
import resource
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from admin_api.catalog.events import Actor
from admin_api.services.access import Principal
from admin_api.services.facility import Facility, open_facility
from admin_api.settings import HousekeepingSettings, Settings
from tests.support.servers import (
    Postgres,
    Service,
    Weed,
    postgres,
    postgres_bin,
    service_in,
    weed,
)

# Thousands of connections are opened at once; many systems allow a process 1,024 unless it asks.
_, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_hard, _hard))

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "samples"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drills are left out, unless they are asked for."""
    drills = [item for item in items if item.get_closest_marker("drill")]
    if drills and not os.environ.get("DRILLS"):
        config.hook.pytest_deselected(items=drills)
        items[:] = [item for item in items if item not in drills]


def unavailable(reason: str) -> None:
    """A part of this tier cannot run here: a failure in CI, a skip with its reason elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """A SeaweedFS for the whole run."""
    with weed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def database() -> Iterator[Postgres]:
    """A PostgreSQL for the whole run."""
    if postgres_bin() is None:
        unavailable("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    # Not beneath pytest's own folder, which every other run of pytest closes to other users.
    with tempfile.TemporaryDirectory(prefix="storage-manager-postgres-") as directory:
        with postgres(Path(directory) / "data") as server:
            yield server


@pytest.fixture(scope="session")
def samples() -> Path:
    """The real Sentinel trees."""
    if not SAMPLES.is_dir():
        pytest.skip(f"the sample products are not at {SAMPLES}")
    return SAMPLES


def _backend(kind: str, directory: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    if kind == "s3":
        return request.getfixturevalue("s3_server").backend()
    return {"type": "posix", "root": directory / "store"}


@pytest.fixture(params=["posix", "s3"])
def facility(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Facility]:
    """A facility in this process, on each kind of store."""
    made = make_facility(tmp_path, _backend(request.param, tmp_path, request))
    yield made
    made.catalog.close()


def stale_at_once(**more: float) -> HousekeepingSettings:
    """Grace times that no operator may set: whatever is left over is stale at once."""
    return HousekeepingSettings.model_construct(
        grace_seconds=1e-6, commit_grace_seconds=1e-6, **more
    )


def make_facility(directory: Path, backend: dict[str, Any], **sections: Any) -> Facility:
    """A facility in this process."""
    keys = directory / "keys"
    keys.write_text(f"k1 {secrets.token_hex(32)}\n")
    (directory / "inbox").mkdir(exist_ok=True)
    return open_facility(
        Settings(
            state_dir=directory / "state",
            storage={"mounts": [{"backend": backend}]},
            auth={"key_file": keys},
            sources={"file_roots": [directory / "inbox"], **sections.pop("sources", {})},
            **sections,
        )
    )


@pytest.fixture
def operator() -> Principal:
    """Somebody who may do everything."""
    return Principal("operator", frozenset(["admin"]), None, "test-request")


@pytest.fixture
def actor() -> Actor:
    """The same, for the event log."""
    return Actor("operator", "test-request")


@pytest.fixture(scope="module", params=["posix-sqlite", "s3-postgresql"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The running service, on each pair of store and database."""
    directory = tmp_path_factory.mktemp("service")
    kind, _, catalog = request.param.partition("-")
    pg = request.getfixturevalue("database") if catalog == "postgresql" else None
    made = service_in(directory, _backend(kind, directory, request), pg)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Makes services of a test's own; they end with it."""
    made: list[Service] = []

    def make(backend: dict[str, Any] | None = None, **sections: Any) -> Service:
        directory = tmp_path / f"service-{len(made)}"
        backend = backend or {"type": "posix", "root": directory / "store"}
        made.append(service_in(directory, backend, **sections))
        return made[-1]

    yield make
    for service in made:
        service.stop()
