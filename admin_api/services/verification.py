"""Verifying a stored product again: its bytes are read back and compared with the catalog.

Called by ``web/products.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from admin_api.errors import ManifestMismatch, NotFound, StorageManagerError
from admin_api.products.digests import Digester, FileDigest
from admin_api.products.manifests import MAX_MANIFEST_BYTES, compare, manifest_of
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.listing import get_product, require_available


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

    def results() -> Iterator[Verified]:
        found: dict[str, FileDigest] = {}
        keys = {file.path: file.key for file in files}
        for file in files:
            digester = Digester()
            try:
                for _ in digester.through(facility.storage.open(file.key)):
                    pass
            except StorageManagerError as error:
                yield Verified(file.path, False, file.size, error.detail)
                continue
            found[file.path] = digest = digester.result()
            passed = digest == FileDigest(file.size, file.sha256, file.md5)
            message = "as it was stored" if passed else "the store holds other bytes"
            yield Verified(file.path, passed, file.size, message)
        manifest = manifest_of(product.name)
        if with_manifest and manifest is not None:
            yield _verify_manifest(facility, product.name, manifest, keys, found)

    return results()


def _verify_manifest(
    facility: Facility,
    name: str,
    manifest: str,
    keys: dict[str, str],
    found: dict[str, FileDigest],
) -> Verified:
    def other_digest(path: str, algorithm: str) -> str:
        raise ValueError(algorithm)

    try:
        if manifest not in keys:
            raise NotFound(f"The product has no {manifest}.")
        data = b"".join(facility.storage.open(keys[manifest], 0, MAX_MANIFEST_BYTES))
        report = compare(name, data, found, other_digest)
    except (NotFound, ManifestMismatch) as error:
        return Verified(manifest, False, 0, error.detail)
    problems = [f"{wrong.path}: {wrong.reason}" for wrong in report.wrong]
    problems += [f"{path}: missing" for path in report.missing]
    if report.crc_expected != report.crc_found:
        problems.append(f"CRC {report.crc_found}, the name says {report.crc_expected}")
    message = "; ".join(problems) or f"all {report.entries} entries are right"
    return Verified(manifest, report.passed, len(data), message)
