"""The journal of multipart uploads: what a bucket may hold of ours that is not finished.

One row from before an upload exists until it is completed or aborted.  Written by
``storage/multipart.py`` through its protocol ``UploadJournal``; read by ``services/multiparts.py``.
"""

from __future__ import annotations

import uuid

from sqlalchemy import delete, select

from admin_api.catalog import clock
from admin_api.catalog.database import Catalog
from admin_api.catalog.models import Multipart


class CatalogJournal:
    """The uploads of one mount."""

    def __init__(self, catalog: Catalog, mount: str) -> None:
        """``mount`` is the path at which the bucket is mounted."""
        self._catalog = catalog
        self._mount = mount

    def begun(self, key: str) -> str:
        """Announce an upload for ``key`` (in the store), durably, and return its ticket."""
        ticket = uuid.uuid4().hex
        with self._catalog.writing() as session:
            session.add(
                Multipart(
                    mount=self._mount,
                    ticket=ticket,
                    key=f"{self._mount}/{key}" if self._mount else key,
                    begun_at=clock.read(session),
                )
            )
        return ticket

    def stands(self, ticket: str) -> bool:
        """Whether nobody has taken the upload out since it was announced."""
        with self._catalog.reading() as session:
            return (
                session.scalar(
                    select(Multipart.ticket).where(
                        Multipart.mount == self._mount, Multipart.ticket == ticket
                    )
                )
                is not None
            )

    def ended(self, ticket: str) -> None:
        """Forget an upload that is completed or aborted."""
        with self._catalog.writing() as session:
            session.execute(
                delete(Multipart).where(Multipart.mount == self._mount, Multipart.ticket == ticket)
            )
