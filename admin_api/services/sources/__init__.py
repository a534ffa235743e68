"""Where products may be ingested from: directories, buckets and web servers, as settings allow.

Nothing else is read (promise I9).  One module per kind: ``files``, ``buckets``, ``web`` (with
``addresses``: who may be asked, ``connections``: how many at once, ``headers``: what an answer
says).  Called by ``services/ingest.py``.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from admin_api.errors import InvalidRequest, SourceDenied
from admin_api.services.sources import buckets, files
from admin_api.services.sources.found import Found, SourceFile
from admin_api.services.sources.web import Web
from admin_api.settings import LimitSettings, SourceSettings
from admin_api.uris import shown

__all__ = ["Found", "SourceFile", "Sources"]


class Sources:
    """The allowed sources."""

    def __init__(self, settings: SourceSettings, limits: LimitSettings) -> None:
        """Raises ValueError for origins and networks that are none."""
        self._settings = settings
        self._max_files = limits.max_product_files
        self._web = Web(settings, limits)

    def find(self, uri: str, ask: bool = True) -> Found:
        """What ``uri`` names.

        A web server is asked now, and its answer is kept open for the first reading; with ``ask``
        false only once the file's turn has come (:meth:`SourceFile.ready`), because a product may
        list more files than a server takes connections.

        Raises SourceDenied outside the allowed places, SourceNotFound, SourceUnavailable,
        InvalidKey, TooLarge, and InvalidRequest for a URI that cannot be understood.
        """
        try:
            scheme = urlsplit(uri).scheme
        except ValueError:  # its own words may hold the credentials of the URI
            raise InvalidRequest(f"The source {shown(uri)!r} is not a URI.") from None
        match scheme:
            case "file":
                return files.find(uri, self._settings.file_roots, self._max_files)
            case "s3":
                return buckets.find(uri, self._settings.s3, self._max_files)
            case "http" | "https":
                return self._web.find(uri) if ask else self._web.listed(uri)
        # Of a URI of an unknown form it is not known where its secrets are.
        raise SourceDenied(
            f"The source has the scheme {scheme!r}; file, s3, http, https and alluxio are known."
        )
