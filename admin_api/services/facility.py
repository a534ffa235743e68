"""A facility: settings, storage and catalog put together; every service works on one."""

from __future__ import annotations

from dataclasses import dataclass

from admin_api.catalog.database import Catalog
from admin_api.services.heartbeat import Heartbeat
from admin_api.services.reserve import Reserve
from admin_api.services.spool import Spool
from admin_api.settings import Settings
from admin_api.storage.mounts import Mounts, open_storage


@dataclass(frozen=True, slots=True)
class Facility:
    """The parts that services need."""

    settings: Settings
    storage: Mounts
    catalog: Catalog
    heartbeat: Heartbeat
    reserve: Reserve
    spool: Spool


def open_facility(settings: Settings) -> Facility:
    """Open storage and catalog; the catalog's tables are brought to this version.

    Raises the errors of the stores and CatalogUnavailable.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    catalog = Catalog(settings.catalog)
    catalog.migrate()
    return Facility(
        settings,
        open_storage(settings.storage),
        catalog,
        Heartbeat(catalog),
        Reserve(settings),
        Spool(settings.state_dir, settings.limits.max_spool_bytes),
    )
