"""The one grammar for keys (design rule 2), used wherever a name enters the system."""

from __future__ import annotations

import re
import unicodedata

from admin_api.errors import InvalidKey

MAX_PART_BYTES = 255
MAX_KEY_BYTES = 900

#: Uploads through an Alluxio proxy go beneath this, in a directory for each subject.
INCOMING = "incoming"

#: prosEO's job orders, unless its settings name another place.
JOBORDERS = "joborders"

# Parts of the namespace that are no products': the storage manager's, and Alluxio's own.
RESERVED = {".products", ".tmp", ".probe", ".alluxio_s3_api_metadata", INCOMING, JOBORDERS}

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f?\\\u2028\u2029]")


def check_part(part: str) -> str:
    """Return ``part`` if it can be one part of a key; raise InvalidKey with the reason if not."""
    if part in ("", ".", ".."):
        raise InvalidKey(f"A path part may not be {part!r}.", name=part)
    found = _FORBIDDEN.search(part)
    if found:
        raise InvalidKey(
            f"The name {part!r} holds {_describe(found.group())}, which keys may not have.",
            name=part,
        )
    try:
        size = len(part.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidKey(f"The name {part!r} is not valid UTF-8.", name=part) from None
    if size > MAX_PART_BYTES:
        raise InvalidKey(
            f"The name {part[:40]!r}... has {size} bytes; a path part may have {MAX_PART_BYTES}.",
            name=part,
        )
    return part


def check_key(key: str, max_bytes: int = MAX_KEY_BYTES) -> str:
    """Return ``key`` if every part of it and its length keep the grammar, else raise InvalidKey."""
    for part in key.split("/"):
        try:
            check_part(part)
        except InvalidKey as error:
            raise InvalidKey(f"In the path {key[:200]!r}: {error.detail}", name=key) from None
    size = len(key.encode("utf-8"))
    if size > max_bytes:
        raise InvalidKey(
            f"The path {key[:40]!r}... has {size} bytes; {max_bytes} are allowed.", name=key
        )
    return key


def escape(path: str) -> str:
    """Percent-encode what the grammar forbids in ``path`` (and ``%`` itself, to stay reversible).

    ``.`` and ``..`` parts are never made acceptable: they are refused by :func:`check_key`.
    """
    return re.sub(
        r"%|" + _FORBIDDEN.pattern,
        lambda match: "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8")),
        path,
    )


def join(*parts: str) -> str:
    """Join the non-empty parts with slashes."""
    return "/".join(part for part in parts if part)


def beneath(key: str, directory: str) -> bool:
    """Whether ``key`` lies beneath ``directory`` ('' is the root)."""
    return not directory or key.startswith(directory + "/")


def _describe(character: str) -> str:
    name = unicodedata.name(character, "")
    return f"{name or 'the control character'} (U+{ord(character):04X})"
