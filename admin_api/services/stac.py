"""STAC items as products to import: their assets with sizes and checksums (file extension 2).

Pure functions.  Called by ``web/jobs.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from admin_api.errors import InvalidRequest

#: What is no part of a product, whatever roles it has besides.
_BESIDES = frozenset(("thumbnail", "overview", "visual-preview"))
#: Multihash prefixes (code and length) of the digests that are computed here, and their digits.
_MULTIHASHES = {
    "1220": ("sha256", 64),
    "d50110": ("md5", 32),
    "1620": ("SHA3-256", 64),
    "1440": ("SHA3-512", 128),
    "1340": ("SHA-512", 128),
    "1e20": ("BLAKE3", 64),
}


def is_item(entry: object) -> bool:
    """Whether this is a STAC item and not an item of our own form."""
    return isinstance(entry, dict) and entry.get("type") == "Feature" and "assets" in entry


def features(entry: Mapping[str, Any]) -> Iterator[Any]:
    """The items of an item collection; raises InvalidRequest if it has none."""
    found = entry.get("features")
    if not isinstance(found, list):
        raise InvalidRequest("The item collection has no list of features.")
    yield from found


def wanted(item: Mapping[str, Any]) -> dict[str, Any]:
    """What a STAC item asks for, in the words of ``POST /v1/products``.

    One asset is a product of one file, called as the file; several are a product called as the
    item.  Thumbnails and overviews are left out.  Raises InvalidRequest.
    """
    assets = item.get("assets")
    if not isinstance(assets, dict):
        raise InvalidRequest("The STAC item has no assets.")
    files = [_file(name, asset) for name, asset in assets.items() if _is_part(asset)]
    if not files:
        raise InvalidRequest("The STAC item has no asset that is a part of the product.")
    if len(files) == 1:
        return {name: value for name, value in files[0].items() if name != "path"}
    if not isinstance(item.get("id"), str):
        raise InvalidRequest("The STAC item has no id.")
    return {"name": item["id"], "files": files}


def _is_part(asset: object) -> bool:
    roles = asset.get("roles") if isinstance(asset, dict) else None
    return not (isinstance(roles, list) and _BESIDES & {str(role) for role in roles})


def _file(name: str, asset: object) -> dict[str, Any]:
    href = asset.get("href") if isinstance(asset, dict) else None
    if not isinstance(asset, dict) or not isinstance(href, str):
        raise InvalidRequest(f"The asset {name[:100]!r} has no href.")
    try:
        split = urlsplit(href)
    except ValueError:
        split = urlsplit("")
    if not split.scheme:
        raise InvalidRequest(
            f"The href of the asset {name[:100]!r} is relative, or no URI; it must be absolute."
        )
    path = asset.get("file:local_path") or unquote(split.path).rstrip("/").rpartition("/")[2]
    file: dict[str, Any] = {"path": path or name, "source": href}
    if asset.get("file:size") is not None:
        file["size"] = asset["file:size"]
    checksum = asset.get("file:checksum")
    if checksum is not None:
        file.update(_digest(name, checksum))
    return file


def _digest(name: str, checksum: object) -> dict[str, Any]:
    text = checksum.lower() if isinstance(checksum, str) else ""
    for prefix, (algorithm, length) in _MULTIHASHES.items():
        if text.startswith(prefix) and len(text) == len(prefix) + length:
            value = text[len(prefix) :]
            is_common = algorithm in ("sha256", "md5")
            return {algorithm: value} if is_common else {"digests": {algorithm: value}}
    raise InvalidRequest(
        f"The checksum of the asset {name[:100]!r} is no multihash of a SHA-2, a SHA-3, an MD5 "
        "or a BLAKE3, and no other can be compared here."
    )
