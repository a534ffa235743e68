"""Verifying a stored product again: its bytes are read back and compared with the catalog.

Called by ``web/products.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from admin_api.errors import ManifestMismatch, NotFound, StorageManagerError
from admin_api.products.digests import Digester, FileDigest
from admin_api.products.manifests import (
    MAX_MANIFEST_BYTES,
    algorithms_needed,
    compare,
    find_manifest,
    parse_manifest,
)
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.listing import get_product, require_available
from admin_api.services.transfers import Kind, Need

_REPAIR = (
    "re-ingest the product with duplicates=replace from a good source "
    "(docs/operations.md#a-damaged-product)"
)
# Of a manifest's problems so many are told; the product is to be replaced, whatever else there is.
_MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Verified:
    """What came of one file (or of the manifest)."""

    path: str
    passed: bool
    size: int
    message: str


def verify(
    facility: Facility, principal: Principal, product_id: str, with_manifest: bool
) -> Iterator[Verified]:
    """Read every file of a product back; raises NotFound, Gone before the first result."""
    product, files = get_product(facility, principal, product_id)
    require_available(product)

    keys = {file.path: file.key for file in files}
    manifest = find_manifest(product.name, keys) if with_manifest else None

    def results() -> Iterator[Verified]:
        need = Need(memory=facility.storage.read_memory(), sources=1)
        with facility.transfers.take(Kind.INGEST, need):
            yield from read()

    def read() -> Iterator[Verified]:
        data = _read_manifest(facility, keys.get(manifest)) if manifest else None
        needed = _algorithms(data, keys)
        found: dict[str, FileDigest] = {}
        others: dict[str, Mapping[str, str]] = {}
        for file in files:
            digester = Digester(needed.get(file.path, ()))
            try:
                for _ in digester.through(facility.storage.open(file.key)):
                    pass
            except NotFound:
                message = f"the store does not have it any more; {_REPAIR}"
                yield Verified(file.path, False, file.size, message)
                continue
            except StorageManagerError as error:
                yield Verified(file.path, False, file.size, error.detail)
                continue
            found[file.path] = digest = digester.result()
            others[file.path] = digester.others()
            passed = digest == FileDigest(file.size, file.sha256, file.md5)
            message = "as it was stored" if passed else f"the store holds other bytes; {_REPAIR}"
            yield Verified(file.path, passed, file.size, message)
        if manifest is not None:
            yield _verify_manifest(product.name, manifest, data, found, others)

    return results()


def _read_manifest(facility: Facility, key: str | None) -> bytes | None:
    if key is None:
        return None
    try:
        return b"".join(facility.storage.open(key, 0, MAX_MANIFEST_BYTES))
    except StorageManagerError:
        return None  # told when its turn as a file comes


def _algorithms(manifest: bytes | None, keys: Mapping[str, str]) -> dict[str, set[str]]:
    """What must be computed of each file while it is read, besides SHA-256 and MD5."""
    try:
        return algorithms_needed(parse_manifest(manifest), keys) if manifest is not None else {}
    except ManifestMismatch:
        return {}  # told when everything else has been read


def _verify_manifest(
    name: str,
    path: str,
    manifest: bytes | None,
    found: Mapping[str, FileDigest],
    others: Mapping[str, Mapping[str, str]],
) -> Verified:
    size = len(manifest or b"")
    try:
        report = compare(name, path, manifest, found, lambda file, _: others[file])
    except ManifestMismatch as error:
        return Verified(path, False, size, f"{error.detail} To mend it: {_REPAIR}.")
    problems = list(report.problems())
    if not problems:
        return Verified(path, True, size, f"all {report.entries} entries are right")
    if len(problems) > _MAX_PROBLEMS:
        problems[_MAX_PROBLEMS:] = [f"{len(problems) - _MAX_PROBLEMS} more"]
    return Verified(path, False, size, "; ".join([*problems, _REPAIR]))
