"""The one error vocabulary: every failure the facility can name, with a stable code.

Raised by every layer, translated where a foreign library is called, and turned into
problem+json by ``web/problems.py`` (the only place that knows HTTP statuses).
"""

from __future__ import annotations

from typing import Any


class StorageManagerError(Exception):
    """A failure with a code for machines and a sentence for people.

    ``detail`` says what is wrong, where and what to do; it is shown to clients, so it never
    holds secrets or stack traces.  ``extra`` holds machine-readable members (file lists, sizes).
    """

    code = "internal_error"

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra


# -- what a store can answer (the vocabulary of storage/) ---------------------------------------
class NotFound(StorageManagerError):
    """There is no such object, product, upload or file."""

    code = "not_found"


class AlreadyExists(StorageManagerError):
    """A key is written once; this one has its bytes already."""

    code = "already_exists"


class NoSpace(StorageManagerError):
    """The store, its quota or the disk is full."""

    code = "no_space"


class Unavailable(StorageManagerError):
    """The store cannot be reached or does not answer as it should; worth trying again."""

    code = "storage_unavailable"


class Denied(StorageManagerError):
    """The store refuses our credentials or permissions."""

    code = "storage_denied"


class UnreadableRecord(StorageManagerError):
    """A record in the store is damaged; what it said has to be looked at by an operator."""

    code = "record_unreadable"


class InvalidKey(StorageManagerError):
    """A name that breaks the grammar for keys (design rule 2)."""

    code = "invalid_key"


# -- what a request can get wrong ----------------------------------------------------------------
class InvalidRequest(StorageManagerError):
    """A request that cannot be understood or contradicts itself."""

    code = "invalid_request"


class UnsupportedMediaType(StorageManagerError):
    """A body that is encoded, framed or wrapped, where the bytes themselves are wanted."""

    code = "unsupported_media_type"


class Unauthorized(StorageManagerError):
    """No token, or one that does not hold."""

    code = "unauthorized"


class Forbidden(StorageManagerError):
    """The token holds but does not allow this verb or this mission."""

    code = "forbidden"


class Gone(StorageManagerError):
    """The product was removed; its tombstone says who, when and why."""

    code = "gone"


class TooLarge(StorageManagerError):
    """More bytes or entries than the settings allow."""

    code = "too_large"


class ClientStalled(StorageManagerError):
    """The client stopped sending."""

    code = "client_stalled"


class ClientDisconnected(StorageManagerError):
    """The client went away before the body was complete."""

    code = "incomplete_body"


class Busy(StorageManagerError):
    """The limit of concurrent transfers is reached; try again."""

    code = "busy"


class Replaced(Busy):
    """A file has other bytes since it was found; whoever looks again finds them."""


class IdempotencyConflict(StorageManagerError):
    """An Idempotency-Key that was used for another request."""

    code = "idempotency_key_reused"


# -- what can go wrong with products -------------------------------------------------------------
class ProductExists(StorageManagerError):
    """A product of this name is there already and the duplicate policy refuses another."""

    code = "product_exists"


class InProgress(StorageManagerError):
    """Another request works on the same product or key right now; try again."""

    code = "in_progress"


class DigestMismatch(StorageManagerError):
    """The bytes that arrived are not the bytes that were announced."""

    code = "digest_mismatch"


class SizeMismatch(StorageManagerError):
    """More or fewer bytes arrived than were announced."""

    code = "size_mismatch"


class OffsetMismatch(StorageManagerError):
    """A piece of a file that does not begin where the bytes that have arrived end."""

    code = "offset_mismatch"


class ManifestMismatch(StorageManagerError):
    """The product is not what its manifest says; ``extra['manifest']`` names each entry."""

    code = "manifest_mismatch"


class ReadbackMismatch(StorageManagerError):
    """The store gave back other bytes than were written."""

    code = "readback_mismatch"


class InvalidArchive(StorageManagerError):
    """An archive that cannot be unpacked safely."""

    code = "invalid_archive"


class SourceDenied(StorageManagerError):
    """A source outside the allowed roots, buckets and hosts."""

    code = "source_denied"


class SourceNotFound(StorageManagerError):
    """The source names nothing."""

    code = "source_not_found"


class SourceUnavailable(StorageManagerError):
    """The source cannot be read now, ended early or stalled."""

    code = "source_unavailable"


class Held(StorageManagerError):
    """An operator holds the product; it is not removed."""

    code = "held"


class Retained(StorageManagerError):
    """The product's retention date has not come; it is not removed."""

    code = "retained"


class Leased(StorageManagerError):
    """Somebody is working with the product under a lease; it is not removed."""

    code = "leased"


class StagingTimeout(StorageManagerError):
    """A file was not in the staging cache within the time that the settings give."""

    code = "staging_timeout"


class CatalogUnavailable(StorageManagerError):
    """The catalog database cannot be reached or written."""

    code = "catalog_unavailable"


class CatalogBehind(StorageManagerError):
    """The store knows of more than the catalog does, which is an older one."""

    code = "catalog_behind"


class ConfigurationError(StorageManagerError):
    """The settings are wrong; nothing was started."""

    code = "configuration_error"
