"""A facility: settings, storage and catalog put together; every service works on one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from admin_api.catalog.database import Catalog
from admin_api.catalog.multiparts import CatalogJournal
from admin_api.settings import Settings
from admin_api.storage.mounts import Mounts, open_storage


@dataclass(frozen=True, slots=True)
class Facility:
    """The parts that services need."""

    settings: Settings
    storage: Mounts
    catalog: Catalog


def open_facility(settings: Settings) -> Facility:
    """Open storage and catalog; the catalog's tables are brought to this version.

    Raises the errors of the stores and CatalogUnavailable.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    catalog = Catalog(settings.catalog)
    catalog.migrate()
    journal = partial(CatalogJournal, catalog)
    return Facility(settings, open_storage(settings.storage, journal), catalog)
