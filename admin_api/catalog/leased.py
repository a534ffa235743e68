"""Which keys are in use under a lease.  Asked by the staging cache before it lets files go."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select

from admin_api.catalog import clock
from admin_api.catalog.database import Catalog
from admin_api.catalog.models import File, Product

_ASKED_AT_ONCE = 500


def leased_keys(catalog: Catalog, keys: Collection[str]) -> set[str]:
    """Those of ``keys`` that are files of leased products; raises CatalogUnavailable."""
    asked, found = list(keys), set[str]()
    for at in range(0, len(asked), _ASKED_AT_ONCE):
        with catalog.reading() as session:
            found |= set(
                session.scalars(
                    select(File.key)
                    .join(Product, Product.pk == File.product_pk)
                    .where(File.key.in_(asked[at : at + _ASKED_AT_ONCE]))
                    .where(Product.leased_until > clock.now())
                )
            )
    return found
