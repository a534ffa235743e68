"""A facility: settings, storage and catalog put together; every service works on one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from admin_api.catalog.database import Catalog
from admin_api.catalog.leased import leased_keys
from admin_api.catalog.multiparts import CatalogJournal
from admin_api.services import identity
from admin_api.services.heartbeat import Heartbeat
from admin_api.services.reserve import Reserve
from admin_api.services.spool import Spool
from admin_api.services.stage_cache import StageCache
from admin_api.services.together import Together
from admin_api.services.transfers import Transfers
from admin_api.services.watch import Watch
from admin_api.settings import Settings
from admin_api.storage.mounts import Mounts, open_storage

#: A start waits so long for the stores to say whose they are.
_FIRST_LOOK_SECONDS = 5.0
#: Products whose transitions share a transaction at most.
_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Facility:
    """The parts that services need."""

    settings: Settings
    storage: Mounts
    catalog: Catalog
    heartbeat: Heartbeat
    reserve: Reserve
    spool: Spool
    transfers: Transfers
    watch: Watch
    stage_cache: StageCache
    #: Transitions of products that share a transaction; their types are lifecycle's.
    beginnings: Together[Any, Any]
    claims: Together[Any, Any]
    promotions: Together[Any, Any]


def open_catalog(settings: Settings) -> Catalog:
    """Open the catalog; its tables are brought to this version.  Raises CatalogUnavailable."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    catalog = Catalog(settings.catalog)
    catalog.migrate()
    return catalog


def open_facility(settings: Settings) -> Facility:
    """Open catalog and storage, and look whose the stores are.

    A store that is not the expected one, or that does not answer, stays closed until it is; the
    facility is there all the same.  Raises CatalogUnavailable.
    """
    return join(settings, open_catalog(settings))


def join(settings: Settings, catalog: Catalog) -> Facility:
    """The facility over a catalog whose tables are of this version, reachable now or not."""
    storage = open_storage(
        settings.storage,
        settings.state_dir,
        partial(identity.look, catalog),
        partial(CatalogJournal, catalog),
    )
    identity.look_at_all(storage, _FIRST_LOOK_SECONDS)
    return Facility(
        settings,
        storage,
        catalog,
        Heartbeat(catalog, settings.housekeeping.beat_seconds),
        Reserve(settings),
        Spool(settings.state_dir, settings.limits.max_spool_bytes),
        Transfers(
            settings.server.threads,
            settings.limits.payload_memory_bytes,
            settings.limits.open_sources,
        ),
        Watch(catalog, storage),
        StageCache(settings.staging, partial(leased_keys, catalog)),
        *(Together[Any, Any](_AT_ONCE) for _ in range(3)),
    )
