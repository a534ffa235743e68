"""What of a directory is one product: the rule by which every search tells products apart.

Called by ``services/scans.py`` and the command.
"""

from __future__ import annotations

from collections.abc import Iterable

from admin_api.products.manifests import find_manifest
from admin_api.products.names import is_tree


def is_one_product(name: str, entries: Iterable[str]) -> bool:
    """Whether a directory of this name, with these entries at its top, is one product.

    By its name, or by a manifest at its top whatever it is called.
    """
    return is_tree(name) or find_manifest("", entries) is not None
