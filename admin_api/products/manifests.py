"""Manifests of products: manifest.safe (Sentinel-1, -2) and xfdumanifest.xml (Sentinel-3).

Both are XFDU packages (CCSDS 661.0-B-1): each ``byteStream`` names a file with its size and
checksum.  Called by ``services/verification.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from xml.parsers import expat

from admin_api.errors import ManifestMismatch
from admin_api.products.digests import FileDigest, crc16
from admin_api.products.names import parse_name

#: Manifests are small (a Sentinel-2 manifest has about 70 KiB).
MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One file that a manifest names; ``algorithm`` as hashlib calls it."""

    path: str
    size: int | None
    algorithm: str | None
    checksum: str | None


@dataclass(frozen=True, slots=True)
class Wrong:
    """A file that is there and is not what the manifest says."""

    path: str
    reason: str


@dataclass(slots=True)
class Report:
    """A product compared with its manifest."""

    manifest: str
    entries: int
    right: list[str] = field(default_factory=list)
    wrong: list[Wrong] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    crc_expected: str | None = None
    crc_found: str | None = None

    @property
    def passed(self) -> bool:
        """Whether everything is there and right."""
        return not self.wrong and not self.missing and self.crc_expected == self.crc_found

    def as_dict(self) -> dict[str, Any]:
        """For answers and logs."""
        return asdict(self) | {"passed": self.passed}


def manifest_of(name: str) -> str | None:
    """The path of the manifest that product ``name`` must have; None if it has none."""
    if name.endswith(".SAFE"):
        return "manifest.safe"
    if name.endswith(".SEN3"):
        return "xfdumanifest.xml"
    return None


def parse_manifest(data: bytes) -> list[Entry]:
    """The files that a manifest names; raises ManifestMismatch if it is not such a document."""
    entries: list[Entry] = []
    current: dict[str, str] | None = None
    text: list[str] | None = None

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal current, text
        local = name.rpartition(":")[2]
        if local == "byteStream":
            current = {"size": attributes.get("size", "")}
        elif current is not None and local == "fileLocation" and "href" in attributes:
            current["href"] = attributes["href"]
        elif current is not None and local == "checksum":
            current["algorithm"] = attributes.get("checksumName", "")
            text = []

    def end(name: str) -> None:
        nonlocal current, text
        local = name.rpartition(":")[2]
        if local == "checksum" and current is not None and text is not None:
            current["checksum"] = "".join(text).strip().lower()
            text = None
        elif local == "byteStream" and current is not None:
            if "href" in current:
                entries.append(_entry(current))
            current = None

    def characters(data: str) -> None:
        if text is not None:
            text.append(data)

    def doctype(*_: object) -> None:
        raise ManifestMismatch("The manifest has a document type declaration, which is refused.")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ManifestMismatch(
            f"The manifest is not well-formed XML: line {error.lineno}, column {error.offset}: "
            f"{expat.ErrorString(error.code)}."
        ) from error
    if not entries:
        raise ManifestMismatch("The manifest names no files.")
    return entries


def compare(
    name: str,
    manifest: bytes,
    files: Mapping[str, FileDigest],
    digest_of: Callable[[str, str], str],
) -> Report:
    """Compare product ``name`` with its manifest.

    ``digest_of(path, algorithm)`` gives digests other than MD5 and SHA-256 (newer Sentinel-2
    manifests use SHA3-256).
    """
    parsed = parse_name(name)
    entries = parse_manifest(manifest)
    report = Report(manifest_of(name) or "", len(entries))
    if parsed and parsed.crc:
        report.crc_expected, report.crc_found = parsed.crc, crc16(manifest)
    for entry in entries:
        found = files.get(entry.path)
        if found is None:
            report.missing.append(entry.path)
            continue
        reason = _difference(entry, found, digest_of)
        if reason:
            report.wrong.append(Wrong(entry.path, reason))
        else:
            report.right.append(entry.path)
    return report


def _difference(
    entry: Entry, found: FileDigest, digest_of: Callable[[str, str], str]
) -> str | None:
    if entry.size is not None and entry.size != found.size:
        return f"size {found.size}, the manifest says {entry.size}"
    if entry.checksum is None or entry.algorithm is None:
        return None
    if entry.algorithm == "md5":
        digest = found.md5
    elif entry.algorithm == "sha256":
        digest = found.sha256
    else:
        try:
            digest = digest_of(entry.path, entry.algorithm)
        except ValueError:
            return f"the manifest's checksum {entry.algorithm!r} is not known here"
    if digest != entry.checksum:
        return f"{entry.algorithm} {digest}, the manifest says {entry.checksum}"
    return None


def _entry(raw: Mapping[str, str]) -> Entry:
    algorithm = re.sub(r"[^a-z0-9]+", "_", raw.get("algorithm", "").lower())
    algorithm = {"sha_256": "sha256", "sha_1": "sha1"}.get(algorithm, algorithm)
    size = raw["size"]
    return Entry(
        path=raw["href"].removeprefix("./").replace("\\", "/"),
        size=int(size) if size.isdecimal() else None,
        algorithm=algorithm or None,
        checksum=raw.get("checksum") or None,
    )
