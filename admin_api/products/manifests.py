"""Manifests of products: manifest.safe (Sentinel-1, -2) and xfdumanifest.xml (Sentinel-3, -6).

Both are XFDU packages (CCSDS 661.0-B-1): each ``byteStream`` names a file with its size and
checksum.  A manifest is foreign text: whatever is in it leads to a report or to ManifestMismatch,
and nothing outside of the product is ever looked for.  Called by the services that receive and
verify.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import unquote
from xml.parsers import expat

from admin_api.errors import ManifestMismatch
from admin_api.keys import MAX_KEY_BYTES, escape
from admin_api.products.digests import ALGORITHMS, FileDigest, algorithm_named, crc16
from admin_api.products.names import parse_name

#: Manifests are small (a Sentinel-2 manifest has about 70 KiB).
MAX_MANIFEST_BYTES = 16 << 20

# What manifests are called, and the suffixes of the names whose products must have them.
_MANIFESTS = {
    "manifest.safe": (".SAFE",),
    "xfdumanifest.xml": (".SEN3", ".SEN6"),
}
_MAX_SHOWN = 80
_MAX_LISTED = 1000
# No file has more bytes than a signed 64-bit number tells.
_SIZE = re.compile(r"[0-9]{1,19}", re.ASCII)

#: Gives digests of a file by other algorithms than MD5 and SHA-256, in one reading.
DigestsOf = Callable[[str, Collection[str]], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a manifest says of one file; texts as it has them."""

    href: str
    size: str = ""
    algorithm: str = ""
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Wrong:
    """An entry that is not right: another file than the manifest says, or not to be understood."""

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

    def problems(self) -> Iterator[str]:
        """What is not right, a sentence for each."""
        for wrong in self.wrong:
            yield f"{_short(wrong.path)!r}: {wrong.reason}"
        for path in self.missing:
            yield f"{_short(path)!r} is missing"
        if self.crc_expected != self.crc_found:
            yield (
                f"the CRC of {self.manifest} is {self.crc_found}, "
                f"the product's name says {self.crc_expected}"
            )

    def require_passed(self) -> None:
        """Raise ManifestMismatch with the counts and the first thing that is not right."""
        first = next(self.problems(), None)
        if first is not None:
            raise ManifestMismatch(
                f"The product is not what its {self.manifest} says: of {self.entries} entries "
                f"{len(self.right)} are right, {len(self.wrong)} wrong, "
                f"{len(self.missing)} missing; {first}.",
                manifest=self.as_dict(),
            )

    def as_dict(self) -> dict[str, Any]:
        """For answers and logs; of long lists the beginning."""
        whole = asdict(self) | {"passed": self.passed}
        return {
            key: value[:_MAX_LISTED] if isinstance(value, list) else value
            for key, value in whole.items()
        }


def is_manifest(path: str) -> bool:
    """Whether a file at this path is worth keeping at hand for :func:`find_manifest`."""
    return path in _MANIFESTS


def find_manifest(name: str, paths: Iterable[str]) -> str | None:
    """The path of the manifest at the top of a product, whatever the product is called.

    Of several the one that the name asks for.  If there is none: the one that a product of this
    ``name`` must have, though it is missing; None where the name asks for none.
    """
    required = next(
        (
            manifest
            for manifest, suffixes in _MANIFESTS.items()
            if name.lower().endswith(tuple(suffix.lower() for suffix in suffixes))
        ),
        None,
    )
    found = sorted(
        (path for path in paths if path.lower() in _MANIFESTS),
        key=lambda path: (path.lower() != required, path.lower(), path not in _MANIFESTS),
    )
    return found[0] if found else required


def parse_manifest(data: bytes) -> list[Entry]:
    """The files that a manifest names; raises ManifestMismatch if it is not such a document."""
    entries: dict[Entry, None] = {}
    current: dict[str, str] | None = None
    checksums: list[tuple[str, str]] = []
    text: list[str] | None = None

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal current, text
        local = name.rpartition(":")[2]
        if local == "byteStream":
            current = {"size": attributes.get("size", "").strip()}
            checksums.clear()
        elif current is not None and local == "fileLocation" and "href" in attributes:
            current["href"] = attributes["href"]
        elif current is not None and local == "checksum":
            checksums.append((attributes.get("checksumName", "").strip(), ""))
            text = []

    def end(name: str) -> None:
        nonlocal current, text
        local = name.rpartition(":")[2]
        if local == "checksum" and text is not None:
            checksums[-1] = (checksums[-1][0], "".join(text).strip().lower())
            text = None
        elif local == "byteStream" and current is not None:
            if "href" in current:
                for algorithm, checksum in checksums or [("", "")]:
                    entry = Entry(current["href"], current["size"], algorithm, checksum)
                    entries[entry] = None
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
    except (LookupError, ValueError) as error:  # of the codec that its declaration names
        raise ManifestMismatch(
            f"The manifest is in an encoding that cannot be read: {_short(str(error))}."
        ) from error
    if not entries:
        raise ManifestMismatch("The manifest names no files.")
    return list(entries)


def algorithms_needed(entries: Iterable[Entry], paths: Collection[str]) -> dict[str, set[str]]:
    """By path, the algorithms other than MD5 and SHA-256 that the entries ask for."""
    locate = _Locator(paths)
    needed: dict[str, set[str]] = {}
    for entry in entries:
        algorithm = algorithm_named(entry.algorithm)
        path = locate(entry.href)[0]
        if path and entry.checksum and algorithm and algorithm not in ("md5", "sha256"):
            needed.setdefault(path, set()).add(algorithm)
    return needed


def compare(
    name: str,
    path: str,
    manifest: bytes | None,
    files: Mapping[str, FileDigest],
    digests_of: DigestsOf,
) -> Report:
    """Compare product ``name``, of these ``files``, with its manifest that lies at ``path``.

    ``manifest`` is None if there is none.  ``digests_of`` is asked at most once for a file, and
    only for files of the product.  Raises ManifestMismatch for what is no manifest.
    """
    if manifest is None:
        raise ManifestMismatch(f"The product has no {path}.", manifest={"missing": [path]})
    if path in files and files[path].size > MAX_MANIFEST_BYTES:
        raise ManifestMismatch(
            f"The manifest {path} has {files[path].size} bytes; {MAX_MANIFEST_BYTES} are allowed."
        )
    parsed = parse_name(name)
    entries = parse_manifest(manifest)
    report = Report(path, len(entries))
    if parsed and parsed.crc and path.lower() == "manifest.safe":
        report.crc_expected, report.crc_found = parsed.crc, crc16(manifest)
    locate = _Locator(files)
    needed = algorithms_needed(entries, files)
    known: dict[str, Mapping[str, str]] = {}
    for entry in entries:
        found, reason = locate(entry.href)
        if found is None:
            if reason is None:
                report.missing.append(_short(_normalised(entry.href), MAX_KEY_BYTES))
            else:
                report.wrong.append(Wrong(_short(entry.href, MAX_KEY_BYTES), reason))
            continue
        if found not in known:
            digest = files[found]
            others = digests_of(found, needed[found]) if found in needed else {}
            known[found] = {"md5": digest.md5, "sha256": digest.sha256, **others}
        reason = _difference(entry, files[found].size, known[found])
        if reason:
            report.wrong.append(Wrong(found, reason))
        else:
            report.right.append(found)
    return report


class _Locator:
    """Finds the file that an href means among the files of a product."""

    def __init__(self, paths: Collection[str]) -> None:
        self._paths = paths
        self._composed: dict[str, list[str]] | None = None

    def __call__(self, href: str) -> tuple[str | None, str | None]:
        """The file's path, or None and, if the href cannot mean a file of a product, why."""
        plain = _normalised(href)
        decoded = _normalised(unquote(href))
        # As it stands first: a name may hold what looks like an escape.  Then as the store keeps
        # names that keys may not have (the setting escape_names).
        for path in (plain, decoded, escape(plain), escape(decoded)):
            if path in self._paths:
                return path, None
        if _outside(plain) or _outside(decoded):
            return None, "the href does not name a file in the product"
        # File systems and archives differ in how they compose accents; a pair that differs in
        # nothing else is not guessed at.
        if self._composed is None:
            self._composed = {}
            for path in self._paths:
                self._composed.setdefault(unicodedata.normalize("NFC", path), []).append(path)
        for path in (plain, decoded):
            same = self._composed.get(unicodedata.normalize("NFC", path), [])
            if len(same) == 1:
                return same[0], None
        return None, None


def _normalised(href: str) -> str:
    """``href`` as a path in the product: backslashes, ``././a``, ``a//b``, ``file:a`` are usual."""
    path = href.strip().replace("\\", "/")
    if path[:5].lower() == "file:":
        path = path[5:]
    absolute = path.startswith("/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if absolute else "") + "/".join(parts)


def _outside(path: str) -> bool:
    return (
        path in ("", "/")
        or path.startswith("/")
        or ".." in path.split("/")
        or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path.split("/")[0]) is not None
    )


def _difference(entry: Entry, size: int, digests: Mapping[str, str]) -> str | None:
    if entry.size and not _SIZE.fullmatch(entry.size):
        return f"the manifest's size {_short(entry.size)!r} is no number of bytes"
    if entry.size and int(entry.size) != size:
        return f"size {size}, the manifest says {int(entry.size)}"
    if not entry.checksum:
        return None
    algorithm = algorithm_named(entry.algorithm)
    if algorithm is None:
        return (
            f"the manifest's checksum {_short(entry.algorithm)!r} is not known here; known are "
            + ", ".join(ALGORITHMS)
        )
    digest = digests.get(algorithm, "unknown")
    said = entry.checksum.zfill(8) if algorithm == "crc32" else entry.checksum
    if digest != said:
        return f"{algorithm} {digest}, the manifest says {_short(said, 128)}"
    return None


def _short(text: str, limit: int = _MAX_SHOWN) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
