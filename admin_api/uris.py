"""How URIs of sources may be shown.  Called wherever one is kept, answered, logged or printed."""

from __future__ import annotations

import re


def shown(uri: str) -> str:
    """``uri`` as it may be kept, shown and logged: without credentials, query and fragment.

    Signatures and tokens lie in those.  Works on text that is no URI, too: it is shown in the
    message that says so.
    """
    plain = re.split(r"[?#]", uri, maxsplit=1)[0]
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*:)?([/\\]+)[^/\\]*@", r"\1\2", plain)
